"""Sections 5 to 8: the benchmarks of other packages, whose rows become findings.

Each is `python -m PACKAGE out=FOLDER [key=value ...]` and leaves JSON files in FOLDER, with a list `rows` in the form
of `benchmarks.results.Row`, and where it has some, `not_checked` ({name: reason}) and `measured` (figures of
onevision.planning.hardware).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.checks import FAILED, UNCHECKED, Check, Findings, NotChecked, from_rows, say
from onevision.errors import InputError
from onevision.files import read_json

ROOT = Path(__file__).resolve().parents[2]


def check(findings: Findings, scratch: Path, package: str, **settings: str) -> None:
    """Run `package` and read its rows, those too that it left before it broke."""
    if not _there(package):
        raise NotChecked(f"there is no {package}")
    out = scratch / "out"
    out.mkdir()
    command = [sys.executable, "-m", package, f"out={out}", *(f"{key}={value}" for key, value in settings.items())]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
        gather(findings, out)  # what there is when this section has to end
    code = process.wait()
    gather(findings, out)
    if code:
        findings.failed("it broke", f"exit code {code}; last line: {last}")
        raise SystemExit(1)
    outcomes = [found.outcome for found in findings.checks]
    say(f"{len(outcomes)} rows, {outcomes.count('not met')} not met, {outcomes.count(FAILED)} failed")


def gather(findings: Findings, out: Path) -> None:
    """The rows of all files in `out`, as the section's findings."""
    checks, facts = [], {}
    for path in sorted(out.rglob("*.json")):
        try:
            content = read_json(path)
        except InputError:
            continue  # half of a file that is being written, or no JSON
        if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
            continue
        checks += from_rows(content["rows"])
        missing = content.get("not_checked") or {}
        checks += [Check(name, outcome=UNCHECKED, note=reason) for name, reason in missing.items()]
        findings.measured |= content.get("measured") or {}
        facts[path.stem] = {key: value for key, value in content.items() if key not in ("measured", "not_checked")}
    if facts != findings.facts:
        findings.checks, findings.facts = checks, facts
        findings.save()


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"{package}.__main__") is not None
    except ModuleNotFoundError:
        return False
