"""Runs the sections one after the other, each in a process group of its own with a time limit.

Whatever becomes of a section, the others go on, and what it had found is kept.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.checks import SAID, Findings, read_findings
from onevision.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TAIL = 25  # lines that are kept of a section that broke
GRACE = 5.0  # seconds between the request to end and the end


@dataclass(frozen=True)
class Section:
    """A part of the check: `module` has `check(findings, scratch, **settings)`. It takes about `seconds` on an H100, is
    not started when less than half of that is left, and is ended after `limit`."""

    name: str
    module: str
    seconds: float
    limit: float
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Ended:
    """A section that ended, or was never begun: `seconds` is None then."""

    section: str
    findings: Findings
    seconds: float | None = None
    tail: list[str] = field(default_factory=list)  # the last lines it printed, if it broke


def subprocess_environment() -> dict[str, str]:
    """This environment, with the repository's packages on Python's path."""
    path = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads that wait sleep: when they spin, another process on their cores makes them ten times slower.
    quiet = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive"}
    return os.environ | quiet | {"PYTHONPATH": os.pathsep.join(path)}


def run_sections(
    sections: Sequence[Section],
    log: Path,
    seconds: float,
    save: Callable[[list[Ended]], None],
    say: Callable[[str], None],
) -> list[Ended]:
    """Run all sections within `seconds`; `save` is called after each with all that ended, `log` gets what they print.

    A section that does not fit into the time that is left is noted as not checked.
    """
    began = time.monotonic()
    ended: list[Ended] = []

    def tell(line: str) -> None:
        say(f"[{time.monotonic() - began:4.0f} s] {line}")

    with log.open("w", encoding="utf-8") as out, tempfile.TemporaryDirectory(prefix="onevision-gpu-") as scratch:
        for section in sections:
            left = seconds - (time.monotonic() - began)
            folder = Path(scratch) / section.name
            folder.mkdir()
            if left < section.seconds / 2:
                findings = Findings(folder / "findings.json")
                findings.unchecked("all of it", f"out of time: {left:.0f} s left, takes about {section.seconds:.0f} s")
                ended.append(Ended(section.name, findings))
            else:
                limit = min(section.limit, left)
                tell(f"{section.name} (at most {limit:.0f} s)")
                start = time.monotonic()
                try:
                    one = run_section(section, folder, limit, out, lambda line: tell(f"  {line}"))
                except KeyboardInterrupt:
                    findings = _findings_of(folder / "findings.json")
                    findings.unchecked("the rest", "interrupted")
                    save([*ended, Ended(section.name, findings, time.monotonic() - start)])
                    raise
                ended.append(one)
                for picture in (*folder.glob("*.svg"), *folder.glob("out/*.png")):
                    shutil.copy(picture, log.parent)
            save(ended)
    return ended


def run_section(section: Section, folder: Path, limit: float, log: IO[str], say: Callable[[str], None]) -> Ended:
    """Run one section for at most `limit` seconds; its files go to `folder`."""
    path = folder / "findings.json"
    settings = [f"{key}={value}" for key, value in section.settings.items()]
    command = [sys.executable, "-m", "benchmarks.gpu.section", section.module, str(path), str(folder), *settings]
    log.write(f"\n==== {section.name}\n")
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, errors="replace", start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process.stdout, lines, log, say), daemon=True)
    reader.start()
    late = False
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end(process)
    reader.join(GRACE)  # a process that left the group can hold the pipe
    took = time.monotonic() - began
    findings = _findings_of(path)
    if late:
        findings.failed("it did not end", f"ended after its limit of {limit:.0f} s; last line: {_last(lines)}")
    elif process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        findings.failed("it was killed", f"by {name}; last line: {_last(lines)}")
    elif process.returncode and not any(check.outcome == "failed" for check in findings.checks):
        findings.failed("it broke", f"exit code {process.returncode}; last line: {_last(lines)}")
    broke = late or process.returncode != 0
    return Ended(section.name, findings, took, lines[-TAIL:] if broke else [])


def _read(pipe: Any, lines: list[str], log: IO[str], say: Callable[[str], None]) -> None:
    for line in pipe:
        with suppress(ValueError):  # the log was closed: this section was given up
            log.write(line)
            log.flush()
        lines.append(line.rstrip())
        del lines[:-200]
        if line.startswith(SAID):
            say(line.removeprefix(SAID).rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    """End what is left of the process group."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            if number == signal.SIGTERM and not _alive(process.pid):
                return


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _findings_of(path: Path) -> Findings:
    try:
        return read_findings(path)
    except InputError as error:
        findings = Findings(path)
        findings.failed("its findings", str(error))
        return findings


def _last(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "none")[:300]
