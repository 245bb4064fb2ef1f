"""A check that is killed goes on where it was: what came to its end stays, what did not begins with what it had."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import parity
from benchmarks.gpu.checks import UNCHECKED, Check, Findings
from benchmarks.gpu.correctness import check as correctness
from benchmarks.gpu.report import OTHER_CODE, kept, read_report, write_report
from benchmarks.gpu.runner import ROOT, Ended, Section, subprocess_environment
from benchmarks.gpu.stamp import Stamp, code_digest
from jobs import gpu_check
from onevision.errors import InputError
from onevision.files import read_json, write_json
from tests.gpu.test_runner import MODULE, gone, section

DEVICE = "NVIDIA H100 80GB HBM3"
MARK = Stamp("2026-11-28 03:00:00 UTC", "abc", "0123456789ab")


def sections(root: Path) -> list[Section]:
    stages = Section("parity", MODULE, 1, 250, {"how": f"stages {root / 'journal'}"})
    return [replace(section("draws"), name="build"), stages, replace(section("draws"), name="ops")]


def wait_for(found: object) -> None:
    deadline = time.monotonic() + 60
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_check_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = f"""
from pathlib import Path
from jobs.gpu_check import check
from tests.gpu.test_pieces import DEVICE, sections
check(sections(Path({str(tmp_path)!r})), DEVICE, Path({str(out)!r}), 3000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=subprocess_environment())
    report = out / "gpu-check.json"

    def first_part_is_on_disk() -> bool:
        found = read_json(report)["sections"] if report.exists() else {}
        return "first" in found.get("parity", {}).get("facts", {}) and (tmp_path / "child").exists()

    wait_for(first_part_is_on_disk)
    process.send_signal(signal.SIGKILL)
    process.wait()
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: gone(child))  # with this the GPU is free
    content = read_json(report)
    assert content["not_run_yet"] == ["ops"]
    assert [content["sections"][name]["whole"] for name in ("build", "parity")] == [True, False]
    built = content["sections"]["build"]

    (tmp_path / "gate").touch()
    assert gpu_check.check(sections(tmp_path), DEVICE, out, 3000) == 0
    assert (tmp_path / "journal").read_text().split() == ["first", "second", "second", "third"]
    content = read_json(report)
    assert content["sections"]["build"] == built
    assert set(content["sections"]["parity"]["facts"]) == {"first", "second", "third"}
    assert all(one["whole"] for one in content["sections"].values()) and not content["not_run_yet"]
    assert f"build: kept, of {built['stamp']['began']}" in capsys.readouterr().out
    page = (out / "gpu-check.md").read_text()
    assert all(f"{one['stamp']['began']}, " in page for one in content["sections"].values())
    assert len([path for path in out.iterdir() if not path.name.startswith(".")]) <= 8

    assert gpu_check.check(sections(tmp_path), DEVICE, out, 3000, ["ops"]) == 0  # all stays but what is asked for again
    again = read_json(report)["sections"]
    assert again["parity"] == content["sections"]["parity"]
    assert again["ops"]["stamp"]["began"] >= content["sections"]["ops"]["stamp"]["began"]
    log = (out / "log.txt").read_text()
    assert [log.count(f"==== {name}:") for name in ("build", "parity", "ops")] == [1, 2, 2]
    assert all(one.is_file() for one in out.iterdir())


def ended(name: str, **values: object) -> Ended:
    findings = Findings(Path("unused"), [Check("speed", 2.0), Check("the rest", outcome=UNCHECKED, note="out of time")])
    return Ended(name, findings, 3.0, stamp=MARK, settings={"steps": "200"}, **values)  # type: ignore[arg-type]


def test_only_what_has_the_same_code_and_settings_is_kept(tmp_path: Path) -> None:
    write_report(tmp_path, DEVICE, [ended("ops"), ended("parity", whole=False)], ["ops", "parity"], MARK)
    found = read_report(tmp_path, DEVICE, MARK)
    settings = {"ops": {"steps": "200"}, "parity": {"steps": "200"}}
    assert found == {name: replace(one, findings=found[name].findings) for name, one in found.items()}
    same = kept(found, settings, MARK)
    assert list(same) == ["ops", "parity"]
    assert [check.name for check in same["parity"].findings.checks] == ["speed"]
    assert list(kept(found, settings | {"ops": {"steps": "100"}}, MARK)) == ["parity"]
    newer = replace(MARK, code="ba9876543210")
    for _ in range(2):  # however often it is read and written
        found = read_report(tmp_path, DEVICE, newer)
        assert not kept(found, settings, newer)
        told = [check for check in found["ops"].findings.checks if check.name == OTHER_CODE]
        assert [(check.outcome, check.note) for check in told] == [
            (UNCHECKED, "found from code 0123456789ab, and this is ba9876543210")
        ]
        write_report(tmp_path, DEVICE, list(found.values()), ["ops", "parity"], newer)
    assert OTHER_CODE not in [check.name for check in read_report(tmp_path, DEVICE, MARK)["ops"].findings.checks]
    with pytest.raises(InputError, match="is the report of NVIDIA H100 80GB HBM3, not of NVIDIA A800"):
        read_report(tmp_path, "NVIDIA A800", MARK)
    (tmp_path / "gpu-check.json").write_text('{"device": {"name": "NVIDIA A800"}, "sections": {"ops": {}}}')
    with pytest.raises(InputError, match="is no report of gpu-check as it is now"):
        read_report(tmp_path, "NVIDIA A800", MARK)


def test_the_code_is_what_lies_there(tmp_path: Path) -> None:
    source, result = tmp_path / "src" / "a.py", tmp_path / "benchmarks" / "results" / "a.py"
    for path in (source, result):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    before = code_digest(tmp_path)
    result.write_text("2")
    (tmp_path / "src" / "notes.md").write_text("3")
    assert code_digest(tmp_path) == before
    source.write_text("2")
    assert code_digest(tmp_path) != before


TESTS = """
from pathlib import Path

def note(name):
    with (Path(__file__).parent / "journal").open("a") as out:
        out.write(name + " ")

def test_a():
    note("a")

def test_b():
    note("b")

def test_c():
    note("c")
"""


def test_tests_that_ended_are_not_run_again_and_one_that_was_ended_is_run_last(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    name = f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name}"
    findings, scratch = Findings(tmp_path / "findings.json"), tmp_path / "scratch"
    scratch.mkdir()
    correctness(findings, scratch, mark="not other", folders=str(tmp_path))
    (names := [test["name"] for test in findings.facts["tests"]]).sort()
    assert [one.rpartition("::")[2] for one in names] == ["test_a", "test_b", "test_c"], name
    tests = [
        {"name": names[0], "outcome": "begun", "reason": "", "seconds": 0.0},
        {"name": names[1], "outcome": "failed", "reason": "it was off", "seconds": 2.0},
    ]
    later = Findings(tmp_path / "later.json", earlier=Findings(Path("unused"), facts={"tests": tests}))
    (scratch / "tests.jsonl").unlink()
    (tmp_path / "journal").unlink()
    correctness(later, scratch, mark="not other", folders=str(tmp_path))
    assert (tmp_path / "journal").read_text().split() == ["c", "a"]
    assert later.checks[0].note.startswith("2 passed, 1 failed") and later.checks[1].note == "it was off"


def test_curves_that_are_whole_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fp32, bf16 = [3.0, 2.0, 1.0, 1.0], [3.0, 2.0, 1.0, 1.005]
    facts = {"steps": {"fp32": "9 ms a step", "bf16": "3 ms a step"}}
    earlier = Findings(Path("unused"), facts=facts, curves={"fp32": fp32, "bf16": bf16[:3]})
    findings = Findings(tmp_path / "findings.json", earlier=earlier)
    trial = parity.Trial(tmp_path, {}, "tiny", 1, 0, 1)
    trained: list[str] = []

    def train(values: dict[str, Any]) -> list[dict[str, float]]:
        trained.append(values["name"])
        return [{"loss": loss, "step_seconds": 0.002} for loss in bf16]

    monkeypatch.setattr(parity, "run", train)
    parity._curves(findings, trial, {name: parity.PRECISIONS[name] for name in parity.PLAIN}, 4, "a size")
    assert trained == ["bf16"]  # three steps of four are not the whole
    assert findings.curves == {"fp32": fp32, "bf16": bf16}
    assert findings.facts["steps"] == {"fp32": "9 ms a step", "bf16": "2 ms a step"}
    assert [check.name for check in findings.checks][-1] == "bf16 against fp32: largest difference of the loss"


def test_rows_that_were_measured_are_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.throughput.__main__ import OWN, measure

    kept = tmp_path / "kept.json"
    write_json(kept, [{"name": "calibration", "what": "calibration", "measured": {"gemm": 0.8}}])
    own = OWN | {"model": "tiny", "rows": "calibration", "kept": str(kept)}
    written: list[int] = []
    rows = measure(own, [], tmp_path, lambda rows: written.append(len(rows)))
    assert rows[0]["measured"] == {"gemm": 0.8} and written == [1]
    assert capsys.readouterr().out == "calibration: kept\n"
    write_json(kept, [{"name": "calibration", "what": "calibration", "failed": "it broke"}])
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        assert measure(own, [], tmp_path, lambda rows: None)[0]["failed"] == "needs a GPU"
