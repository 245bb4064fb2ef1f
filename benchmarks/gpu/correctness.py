"""Section 3: every test of the repository that is marked `gpu`, in one process."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.checks import FAILED, UNCHECKED, Check, Findings, NotChecked, say
from onevision.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests/ops", "tests/model", "tests/data", "tests/training")
_FRAME = re.compile(r"\S+:\d+: in ")  # of a short traceback


@dataclass(frozen=True)
class Test:
    """A test's name, outcome (passed, failed, skipped), the last line of its failure or the reason, and seconds."""

    name: str
    outcome: str
    reason: str
    seconds: float


def check(findings: Findings, scratch: Path, mark: str = "gpu", folders: str = ",".join(FOLDERS)) -> None:
    """Run the tests with pytest's mark `mark`; each that fails is a finding, with its last line."""
    import pytest  # noqa: F401  # where it is missing, the section says so

    report = scratch / "tests.xml"
    command = [
        sys.executable, "-m", "pytest", *folders.split(","), "-m", mark, f"--junitxml={report}", "--tb=short", "-q",
        "-p", "no:xdist", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--durations=10", "-rfEs",
    ]
    ended = subprocess.run(command, cwd=ROOT)
    if not report.exists():
        raise InputError(f"pytest ended with exit code {ended.returncode} and left no report")
    tests = read_junit(report)
    if not tests:
        raise NotChecked(f"no test in {folders} is marked {mark}")
    counts = Counter(test.outcome for test in tests)
    findings.facts["tests"] = [vars(test) for test in tests]
    text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    seconds = sum(test.seconds for test in tests)
    if counts["passed"] or counts["failed"]:
        note = f"{text}, {seconds:.0f} s"
        findings.goal("tests that failed", counts["failed"], "", "none", not counts["failed"], note)
    say(text)
    for test in tests:
        if test.outcome == "failed":
            findings.add(Check(test.name, outcome=FAILED, note=test.reason))
    for reason, number in Counter(test.reason for test in tests if test.outcome == "skipped").items():
        findings.add(Check(f"{number} tests", outcome=UNCHECKED, note=reason))


def read_junit(path: Path) -> list[Test]:
    """The tests of a JUnit report."""
    tests = []
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}".replace("tests.", "", 1)
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, reason = "failed", _last_line(child)
            elif child.tag == "skipped":
                outcome, reason = "skipped", child.get("message") or "no reason given"
        tests.append(Test(name, outcome, reason, float(case.get("time") or 0)))
    return tests


def _last_line(failure: ElementTree.Element) -> str:
    """What was wrong, and where: the last error of pytest's short traceback, whose lines begin with E."""
    lines = [line.strip() for line in (failure.text or "").splitlines()]
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    last = lines[frames[-1] + 1 :] if frames else lines
    wrong = next((line.removeprefix("E").strip() for line in last if line.startswith("E ")), "")
    message = wrong or next(iter((failure.get("message") or "no message").splitlines()))
    return f"{message} ({lines[frames[-1]]})"[:400] if frames else message[:400]
