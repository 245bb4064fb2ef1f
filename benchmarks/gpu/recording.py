"""A plugin of pytest that writes down each test as it begins and ends, so that a crash loses nothing.

`--record FILE` names a file of JSON lines. Tests that stand in it already are not run again; those of which
`--last FILE` has the names, a line each, are run behind all others. After an error of CUDA that spoils the process the
session ends; the next one goes on behind it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

SPOILED = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")

_ABSENT = re.compile(r"No module named '(\w+)")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", required=True, help="file of JSON lines")
    parser.addoption("--last", default="", help="file of names")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Recorder(Path(config.getoption("--record")), config.getoption("--last")), "recorder")


class _Recorder:
    def __init__(self, path: Path, last: str) -> None:
        self.last = Path(last).read_text(encoding="utf-8").splitlines() if last else []
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.known = {json.loads(line)["name"] for line in lines}
        self.file = path.open("a", encoding="utf-8")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        known = [item for item in items if item.nodeid in self.known]
        if known:
            config.hook.pytest_deselected(items=known)
            items[:] = [item for item in items if item.nodeid not in self.known]
        items.sort(key=lambda item: item.nodeid in self.last)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(name=nodeid, outcome="begun")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and report.nodeid not in self.known:
            said = reason(report)
            absent = _ABSENT.search(said)
            ours = absent is not None and absent[1] in ("onevision", "benchmarks", "jobs", "tests")
            outcome = "skipped" if absent and not ours else "failed"
            self.write(name=report.nodeid, outcome=outcome, reason=said, seconds=0.0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = "" if report.passed else reason(report)
            self.write(name=report.nodeid, outcome=report.outcome, reason=said, seconds=report.duration)
            if report.failed and any(text in said for text in SPOILED):
                pytest.exit("a CUDA error spoiled the process", returncode=3)

    def write(self, **values: Any) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()


def reason(report: Any) -> str:
    """The last line of what went wrong and where, or why a test was skipped."""
    told = report.longrepr
    if isinstance(told, tuple):
        return str(told[2]).removeprefix("Skipped: ")
    crash = getattr(told, "reprcrash", None)
    if crash is None:  # a file that cannot be read
        wrong = [line[1:].strip() for line in str(told).splitlines() if line.startswith("E ")]
        return (wrong or [str(told)])[-1][:400]
    message = next((line for line in crash.message.splitlines() if line.strip()), "no message")
    return f"{message[:300]} ({Path(crash.path).name}:{crash.lineno})"
