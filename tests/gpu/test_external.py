"""What a benchmark has written stands in the section's findings while it runs on, as it may be ended before its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.data import device
from benchmarks.gpu import external, loading
from benchmarks.gpu.checks import FACT, FAILED, UNCHECKED, Findings, read_findings
from benchmarks.results import Row
from onevision.errors import InputError
from onevision.recipe import DataRecipe

SILENT = """
import json, pathlib, sys, time

out = pathlib.Path(dict(text.split("=", 1) for text in sys.argv[1:])["out"])
print("a row", flush=True)
time.sleep(0.3)
(out / "part").write_text(json.dumps({"rows": [{"path": "one", "measure": "time", "value": 1.0, "unit": "s"}]}))
(out / "part").rename(out / "part.json")
for _ in range(200):  # the next row takes long, and nothing is printed
    time.sleep(0.05)
    if (out / "seen").exists():
        sys.exit(0)
sys.exit(3)
"""


def test_a_row_is_kept_although_nothing_is_printed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, out = tmp_path / "silent_benchmark", tmp_path / "out"
    package.mkdir(), out.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SILENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(external, "LOOK", 0.1)
    findings = Findings(tmp_path / "findings.json")

    def read() -> None:
        external.gather(findings, out)
        if findings.checks:
            (out / "seen").touch()

    external.run_package(findings, "silent_benchmark", {"out": str(out)}, read)
    assert [check.name for check in findings.checks] == ["one: time"]
    assert capsys.readouterr().out.startswith("a row\n")


def test_a_way_of_loading_is_kept_before_the_next_one_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings, kept = Findings(tmp_path / "findings.json"), []

    def measured(way: str, *others: object) -> list[Row]:
        kept.append(len(read_findings(findings.path).checks))
        if way.startswith("dali"):
            raise InputError("it cannot be imported")
        return [Row(f"loader/{way}", "speed", 5.0, "images/s", "itself", 5.0, "none, for comparison", True)]

    monkeypatch.setattr(device, "make_corpus", lambda folder: DataRecipe())
    monkeypatch.setattr(device, "Steps", lambda device: None)
    monkeypatch.setattr(device, "way_rows", measured)
    loading.check(findings, tmp_path)
    assert kept == [0, 1, 2, 3]
    outcomes = [check.outcome for check in read_findings(findings.path).checks]
    assert outcomes[:2] == [FACT, FACT] and set(outcomes[2:]) <= {UNCHECKED, FAILED} and len(outcomes) == 4
