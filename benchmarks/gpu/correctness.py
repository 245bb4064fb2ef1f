"""Section 3: every test of the repository that is marked `gpu`, in one process, and a new one behind each crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.checks import FAILED, MET, MISSED, UNCHECKED, Check, Findings, NotChecked, say
from onevision.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests/ops", "tests/model", "tests/data", "tests/training", "tests/concepts")
LOOK = 1.0  # seconds between two looks at what has ended
CRASHES = 8  # after which the rest is given up


@dataclass(frozen=True)
class Test:
    """A test's name, outcome (passed, failed, skipped), the last line of its failure or the reason, and seconds."""

    name: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0


def check(findings: Findings, scratch: Path, mark: str = "gpu", folders: str = ",".join(FOLDERS)) -> None:
    """Run the tests with pytest's mark `mark`; each that fails is a finding, with its last line.

    A test that takes the process with it, by a signal or by an error that spoils CUDA, has failed; the tests behind it
    run in a new process. Tests that an earlier piece of the check ended are not run again, and one that it was ended in
    is run last.
    """
    import pytest  # noqa: F401  # where it is missing, the section says so

    record, last = scratch / "tests.jsonl", scratch / "last.txt"
    last.touch()
    if findings.earlier is not None:
        before = findings.earlier.facts.get("tests", [])
        begun = [test["name"] for test in before if test["outcome"] == "begun"]
        record.write_text("".join(f"{json.dumps(test)}\n" for test in before if test["name"] not in begun))
        last.write_text("\n".join(begun))
    command = [
        sys.executable, "-m", "pytest", *folders.split(","), "-m", mark, f"--record={record}", f"--last={last}",
        "-p", "benchmarks.gpu.recording", "-p", "no:xdist", "-p", "no:cacheprovider",
        "--tb=short", "-q", "--durations=10", "-rfEs", "--continue-on-collection-errors",
    ]
    crashed: dict[str, str] = {}
    for _ in range(CRASHES + 1):
        process = subprocess.Popen(command, cwd=ROOT)
        code = None
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(LOOK)
            _report(findings, read_record(record, crashed), quiet=code is None)
        tests = read_record(record, crashed)
        begun = [test.name for test in tests if test.outcome == "begun"]
        crashed |= {name: _ending(code) for name in begun}
        tests = read_record(record, crashed)
        _report(findings, tests)
        if code in (0, 1, 5) or not (begun or code == 3):
            break
        say(f"{begun[-1] if begun else 'a CUDA error'} took the process with it: {_ending(code)}")
    if not tests and code not in (0, 1, 5):
        raise InputError(f"pytest ended with exit code {code} and ran no test")
    if code not in (0, 1, 5):
        findings.unchecked("the tests behind the last crash", f"pytest ended again and again, at last: {_ending(code)}")
    if not tests:
        raise NotChecked(f"no test in {folders} is marked {mark}")


def _ending(code: int) -> str:
    return f"the process died by {signal.Signals(-code).name}" if code < 0 else f"pytest ended with exit code {code}"


def read_record(path: Path, crashed: dict[str, str]) -> list[Test]:
    """The tests of a record; `crashed` has those that never ended, with the reason."""
    tests: dict[str, Test] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        test = Test(**json.loads(line))
        before = tests.get(test.name)
        if before is None or before.outcome != "failed":  # a failure is not undone by what is torn down behind it
            tests[test.name] = test
    return [Test(test.name, "failed", crashed[name]) if name in crashed else test for name, test in tests.items()]


def _report(findings: Findings, tests: list[Test], quiet: bool = False) -> None:
    """Note the tests so far; the file is written once."""
    facts = [vars(test) for test in tests]
    if quiet and facts == findings.facts.get("tests"):
        return
    checks: list[Check] = []
    counts = Counter(test.outcome for test in tests)
    findings.facts["tests"] = facts
    text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    seconds = sum(test.seconds for test in tests)
    if counts["passed"] or counts["failed"]:
        note = f"{text}, {seconds:.0f} s"
        outcome = MISSED if counts["failed"] else MET
        checks.append(Check("tests that failed", counts["failed"], "", "none", outcome, note))
    if not quiet:
        say(text)
    checks += [Check(test.name, outcome=FAILED, note=test.reason) for test in tests if test.outcome == "failed"]
    for reason, number in Counter(test.reason for test in tests if test.outcome == "skipped").items():
        checks.append(Check(f"{number} tests", outcome=UNCHECKED, note=reason))
    findings.checks = checks
    findings.save()
