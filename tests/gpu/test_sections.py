"""The sections that can run without a GPU do here what they do on one."""

from __future__ import annotations

import signal
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import correctness, machine, parity, section
from benchmarks.gpu.checks import FACT, FAILED, MET, MISSED, UNCHECKED, Findings, NotChecked, read_findings
from benchmarks.gpu.corpus import make_ahead
from benchmarks.gpu.parity import EQUAL, difference, relative, smoothed
from benchmarks.gpu.runner import Section, run_section
from onevision.errors import Interrupted

PARITY = {"preset": "tiny", "steps": "6", "short": "4", "sequence_length": "512", "share": "0.03"}
HERE = {"workers": "0", "threads": "1"}
TESTS = """
import os, signal

import pytest

def test_passes():
    pass

def test_fails():
    assert 1 + 1 == 3

def test_breaks():
    raise ValueError("a value")

def test_kills():
    os.kill(os.getpid(), signal.SIGSEGV)

def test_skips():
    pytest.skip("no part of this GPU")

def test_passes_too():
    pass
"""


def test_training_in_bf16_against_fp32_and_over_a_checkpoint(tmp_path: Path) -> None:
    section, folder = Section("parity", "benchmarks.gpu.parity", 60, 280, PARITY | HERE), tmp_path / "parity"
    folder.mkdir()
    make_ahead(tmp_path / "build", "tiny", 512, 0.03)
    with (tmp_path / "log").open("w") as log:
        ended = run_section(section, folder, 280, log, print)
    assert not (folder / "corpus").exists()  # that which was made ahead is there
    checks = {check.name: check for check in ended.findings.checks}
    assert not [check for check in checks.values() if check.outcome == FAILED], (tmp_path / "log").read_text()
    parity = checks["bf16 against fp32: largest difference of the loss"]
    assert parity.outcome == MET and isinstance(parity.value, float) and 0 < parity.value < 0.01
    assert checks["bf16: two runs of 4 steps"].value == EQUAL
    assert checks["bf16: 2 + 2 steps over a checkpoint: the first step after it"].outcome == MET
    assert checks["fp8 delayed"].note == "Transformer Engine is not installed"
    curves = ended.findings.curves
    assert len(curves["fp32"]) == len(curves["bf16"]) == 6 and curves["resumed"] == curves["once"]
    assert (folder / "parity.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("whole", [0, 2, 4])
def test_training_that_is_ended_for_want_of_time_has_not_failed(
    whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def run(values: dict[str, Any]) -> list[dict[str, Any]]:
        calls.append(values["name"])
        if len(calls) > whole:
            raise Interrupted(f"{calls[-1]} was stopped after step 3 of 4", signal.SIGTERM)
        Path(values["output"]).mkdir()
        return [{"loss": 2.0, "step_seconds": 0.1}] * values["train"]["steps"]

    for name, stand_in in (("run", run), ("corpus_of", lambda *_: {}), ("ready_model", lambda: None)):
        monkeypatch.setattr(parity, name, stand_in)
    monkeypatch.setattr(section, "_end_with", lambda parent: None)
    path = tmp_path / "findings.json"
    code = section.main(["benchmarks.gpu.parity", str(path), str(tmp_path), "steps=4", "short=4"])
    assert code == Interrupted("", signal.SIGTERM).exit_code and len(calls) == whole + 1
    assert FAILED not in [check.outcome for check in read_findings(path).checks]


def test_differences_of_curves() -> None:
    assert smoothed([4.0, 2.0, 6.0], 2).tolist() == [4.0, 3.0, 4.0]
    assert relative([2.0, 2.0], [2.0, 1.0]).tolist() == pytest.approx([0.0, 1 / 3])
    assert difference([1.0, 2.0], [1.0, 2.0]) == EQUAL
    assert difference([1.0, 2.2], [1.0, 2.0]) == "from step 2 on, at most 1.0e-01"
    assert difference([1.0], [1.0, 2.0]) == "1 steps instead of 2"


def test_every_test_that_does_not_pass_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    findings = Findings(tmp_path / "findings.json")
    correctness.check(findings, tmp_path, mark="not other", folders=str(tmp_path))
    first, *others = findings.checks
    assert (first.outcome, first.value) == (MISSED, 3) and first.note.startswith("2 passed, 3 failed, 1 skipped")
    assert {check.name.rpartition("::")[2]: check.outcome for check in others} == {
        "test_fails": FAILED, "test_breaks": FAILED, "test_kills": FAILED, "1 tests": UNCHECKED
    }
    notes = {check.name.rpartition("::")[2]: check.note for check in others}
    assert notes["test_fails"] == "assert (1 + 1) == 3 (test_some.py:10)"
    assert notes["test_breaks"] == "ValueError: a value (test_some.py:13)"
    assert notes["test_kills"] == "the process died by SIGSEGV"
    assert notes["1 tests"] == "no part of this GPU"


def test_a_file_that_cannot_be_read_is_told_and_none_is_nothing_checked(tmp_path: Path) -> None:
    file, scratch = tmp_path / "test_broken.py", tmp_path / "scratch"
    file.write_text("import onevision.no_such_module\n")
    findings = Findings(tmp_path / "findings.json")
    correctness.check(findings, tmp_path, mark="not other", folders=str(tmp_path))
    assert findings.checks[0].outcome == MISSED
    assert "onevision.no_such_module" in findings.checks[1].note
    scratch.mkdir()
    file.write_text("import no_such_package\n")
    correctness.check(findings, scratch, mark="not other", folders=str(tmp_path))
    assert [check.outcome for check in findings.checks] == [UNCHECKED]
    assert "no_such_package" in findings.checks[0].note
    file.write_text("def test_passes(): pass\n")
    (scratch / "tests.jsonl").unlink()
    with pytest.raises(NotChecked, match="is marked other"):
        correctness.check(Findings(tmp_path / "findings.json"), scratch, mark="other", folders=str(tmp_path))


def test_where_hypothesis_is_not_installed_the_other_tests_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    spec = spec_from_file_location("conftest_again", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISK_BYTES", 1 << 24)
    findings = Findings(tmp_path / "findings.json")
    machine.check(findings, tmp_path)
    assert findings.facts["versions"]["python"] == sys.version.split()[0]
    assert {"processor", "cores", "memory_gb"} <= set(findings.facts["hardware"])
    outcomes = {check.name: check.outcome for check in findings.checks}
    assert outcomes["transformer-engine"] == outcomes["GPU"] == UNCHECKED
    assert outcomes["disk: written and flushed"] == FACT
