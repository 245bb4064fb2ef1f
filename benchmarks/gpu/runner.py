"""Runs the sections one after the other, each in a process group of its own with a time limit.

Whatever becomes of a section, the others go on, and what it had found is kept: also when this process is killed, up to
two seconds before.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.checks import EARLIER, ENDINGS, SAID, Findings, read_findings
from benchmarks.gpu.stamp import Stamp
from onevision.errors import InputError
from onevision.files import write_json

ROOT = Path(__file__).resolve().parents[2]
TAIL = 25  # lines that are kept of a section that broke
GRACE = 5.0  # seconds between the request to end and the end
LOOK = 1.0  # seconds between two looks at what a section has found


@dataclass(frozen=True)
class Section:
    """A part of the check: `module` has `check(findings, scratch, **settings)`. It takes about `seconds` on an H100 and
    is ended after `limit`. It is not started when less time than `least` is left, by default half of `seconds`: one
    that can go on in a later piece is worth a start sooner."""

    name: str
    module: str
    seconds: float
    limit: float
    settings: dict[str, str] = field(default_factory=dict)
    least: float = 0.0


@dataclass
class Ended:
    """A section that ended, or was never begun: `seconds` is None then.

    `whole` is false where time, a signal or a person ended it, or it was not begun: a later piece runs it again.
    """

    section: str
    findings: Findings
    seconds: float | None = None
    tail: list[str] = field(default_factory=list)  # the last lines it printed, if it broke
    whole: bool = True
    settings: dict[str, str] = field(default_factory=dict)
    stamp: Stamp = field(default_factory=Stamp)


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
    save: Callable[[Ended], None],
    say: Callable[[str], None],
    earlier: Mapping[str, Findings] | None = None,
    mark: Stamp | None = None,
) -> list[Ended]:
    """Run all sections within `seconds`; `save` is called with each as often as it has found more, and when it ended.

    What they print is appended to `log`. `earlier` has what sections of an earlier piece had found before they were
    ended. A section that does not fit into the time that is left is noted as not checked.
    """
    began = time.monotonic()
    ended: list[Ended] = []
    mark = mark or Stamp()

    def tell(line: str) -> None:
        say(f"[{time.monotonic() - began:4.0f} s] {line}")

    with log.open("a", encoding="utf-8") as out, tempfile.TemporaryDirectory(prefix="onevision-gpu-") as scratch:
        for section in sections:
            left = seconds - (time.monotonic() - began)
            folder = Path(scratch) / section.name
            folder.mkdir()
            before = (earlier or {}).get(section.name)
            if left < (section.least or section.seconds / 2):
                findings = before or Findings(folder / "findings.json")
                note = f"out of time: {left:.0f} s left, takes about {section.seconds:.0f} s"
                findings.unchecked(ENDINGS[0] if before else ENDINGS[1], note)
                one = Ended(section.name, findings, whole=False, settings=section.settings, stamp=mark)
            else:
                limit = min(section.limit, left)
                goes_on = ", goes on" if before else ""
                tell(f"{section.name} (at most {limit:.0f} s{goes_on})")
                one = run_section(section, folder, limit, out, lambda line: tell(f"  {line}"), save, before, mark)
                for picture in (*folder.glob("*.svg"), *folder.glob("out/*.png")):
                    shutil.copy(picture, log.with_name(section.name + picture.suffix))
            ended.append(one)
            save(one)
    return ended


def run_section(
    section: Section,
    folder: Path,
    limit: float,
    log: IO[str],
    say: Callable[[str], None],
    save: Callable[[Ended], None] = lambda one: None,
    earlier: Findings | None = None,
    mark: Stamp | None = None,
) -> Ended:
    """Run one section for at most `limit` seconds; its files go to `folder`. See `run_sections` for the rest."""
    path = folder / "findings.json"
    mark = mark or Stamp()
    if earlier is not None:
        write_json(folder / EARLIER, earlier.content())
    settings = [f"{key}={value}" for key, value in section.settings.items()]
    command = [sys.executable, "-m", "benchmarks.gpu.section", section.module, str(path), str(folder), *settings]
    log.write(f"\n==== {section.name}: {mark}\n")
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, errors="replace", process_group=0,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process.stdout, lines, log, say), daemon=True)
    reader.start()

    def so_far(whole: bool) -> Ended:
        took = time.monotonic() - began
        return Ended(section.name, _findings_of(path), took, whole=whole, settings=section.settings, stamp=mark)

    late = False
    try:
        late = not _waited(process, limit, path, lambda: save(so_far(whole=False)))
    except KeyboardInterrupt:
        _end(process)
        one = so_far(whole=False)
        one.findings.unchecked(ENDINGS[0], "interrupted")
        save(one)
        raise
    finally:
        _end(process)
    reader.join(GRACE)  # a process that left the group can hold the pipe
    one = so_far(whole=not late)
    findings = one.findings
    if late and limit < section.limit:
        findings.unchecked(ENDINGS[0], f"out of time after {limit:.0f} s; last line: {_last(lines)}")
    elif late:
        findings.failed("it did not end", f"ended after its limit of {limit:.0f} s; last line: {_last(lines)}")
    elif process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        findings.failed("it was killed", f"by {name}; last line: {_last(lines)}")
    elif process.returncode and not any(check.outcome == "failed" for check in findings.checks):
        findings.failed("it broke", f"exit code {process.returncode}; last line: {_last(lines)}")
    if late or process.returncode != 0:
        one.tail = lines[-TAIL:]
    return one


def _waited(process: subprocess.Popen[str], limit: float, path: Path, found: Callable[[], None]) -> bool:
    """Wait for the end of a process; `found` is called when the file `path` has changed. Whether it came in time."""
    deadline = time.monotonic() + limit
    seen = None
    while (left := deadline - time.monotonic()) > 0:
        try:
            process.wait(min(LOOK, left))
            return True
        except subprocess.TimeoutExpired:
            now = path.stat().st_mtime_ns if path.exists() else None
            if now != seen:
                seen = now
                found()
    return False


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
