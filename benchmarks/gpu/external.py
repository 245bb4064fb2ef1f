"""Benchmarks of other packages as sections: their rows, in the form of `benchmarks.results.Row`, become findings.

Such a benchmark is `python -m PACKAGE out=FOLDER [key=value ...]`. It leaves JSON files in FOLDER with a list `rows`,
and where it has some `not_checked` ({name: reason}), `measured` (figures of onevision.planning.hardware), and in its
`hardware` the `failures` of its parts ({name: last lines}). One whose file has `runs` takes `kept=FILE`, a file with
those of an earlier piece of the check, which it does not measure again.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from benchmarks.gpu.checks import FAILED, MISSED, UNCHECKED, Check, Findings, NotChecked, from_rows, say
from onevision.errors import InputError
from onevision.files import read_json, write_json
from onevision.planning.hardware import GPUS

ROOT = Path(__file__).resolve().parents[2]
LOOK = 1.0  # seconds between two looks at what a package has written
_UNITS = {name: figure.unit for name, figure in next(iter(GPUS.values())).figures().items()}
_BROKE = re.compile(r"\w+(Error|Exception)\b|ended with code|not done after")


def check(findings: Findings, scratch: Path, package: str, **settings: str) -> None:
    """Run `package` and read its rows, those too that it left before it broke."""
    out = scratch / "out"
    out.mkdir()
    before = findings.earlier.facts if findings.earlier else {}
    runs = [run for facts in before.values() for run in facts.get("runs", ())]
    if runs:
        write_json(scratch / "kept.json", runs)
        settings["kept"] = str(scratch / "kept.json")
    run_package(findings, package, {"out": str(out), **settings}, lambda: gather(findings, out))


def run_package(findings: Findings, package: str, settings: dict[str, str], read: Callable[[], None]) -> None:
    """Run `python -m package key=value ...`; `read` is called again and again while it runs, and at the end.

    Raises:
        NotChecked: there is no such package.
        SystemExit: it failed; the finding says how.
    """
    if not _there(package):
        raise NotChecked(f"there is no {package}")
    command = [sys.executable, "-m", package, *(f"{key}={value}" for key, value in settings.items())]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    last = [""]
    echo = threading.Thread(target=_echo, args=(process.stdout, last), daemon=True)
    echo.start()
    code = None
    while code is None:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(LOOK)
        # What there is when this section has to end. Not only when a line comes: between two rows none may for minutes.
        read()
    echo.join(LOOK)  # a process that outlives it can hold the pipe
    outcomes = [found.outcome for found in findings.checks]
    if code and FAILED not in outcomes:
        findings.failed("it broke", f"exit code {code}; last line: {last[0]}")
        raise SystemExit(1)
    say(f"{len(outcomes)} rows, {outcomes.count(MISSED)} not met, {outcomes.count(FAILED)} failed")


def _echo(pipe: IO[str], last: list[str]) -> None:
    for line in pipe:
        print(line, end="", flush=True)
        last[0] = line.strip() or last[0]


def gather(findings: Findings, out: Path) -> None:
    """The rows of all files in `out`, as the section's findings."""
    checks, facts = [], {}
    for path in sorted(out.rglob("*.json")):
        try:
            content = read_json(path)
        except InputError:
            continue  # no JSON
        if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
            continue
        checks += from_rows(content["rows"])
        missing = content.get("not_checked") or {}
        checks += [Check(name, outcome=_outcome(reason), note=reason) for name, reason in missing.items()]
        failures = (content.get("hardware") or {}).get("failures") or {}
        checks += [Check(name, outcome=FAILED, note=lines.splitlines()[-1]) for name, lines in failures.items()]
        measured = content.get("measured") or {}
        checks += [Check(f"for make plan: {name}", value, _UNITS.get(name, "")) for name, value in measured.items()]
        findings.measured |= measured
        facts[path.stem] = {key: value for key, value in content.items() if key not in ("measured", "not_checked")}
    if facts != findings.facts:
        findings.checks, findings.facts = checks, facts
        findings.save()


def _outcome(reason: str) -> str:
    """Whether a row that is not there lacks something, or broke."""
    return FAILED if _BROKE.match(reason) else UNCHECKED


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"{package}.__main__") is not None
    except ModuleNotFoundError:
        return False
