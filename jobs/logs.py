"""The log of a run's job, while it grows; and the end of a job, saved."""

from __future__ import annotations

import difflib
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from jobs.attempt import process_of, runs
from jobs.facts import ROOTS, Answers, Facts, ask, find, folder_facts, read_lock
from jobs.judge import Row, judge
from jobs.records import Records
from jobs.slurm import Slurm
from jobs.status import nothing_in
from jobs.terminal import LOG_ONLY, LogStream
from onevision.errors import InputError, Interrupted
from onevision.progress import MARK

_LOCAL = re.compile(r"\.?(?P<name>.+)-(?P<stamp>\d{8}-\d{6}(-\d+)?)(\.rank(?P<rank>\d+))?(\.log)?")
_TAIL_BYTES = 4 << 20  # of a log in which the last lines are looked for
_SHOW_SECONDS = 0.2
_ASK_SECONDS = 5.0  # between questions to Slurm, which has others to serve
_YES = {"yes": True, "no": False}


@dataclass(frozen=True)
class Source:
    """A job of a folder whose log can be shown or which can be ended: of Slurm (`facts.job`), or of this machine."""

    name: str
    facts: Facts
    started: float  # seconds since the epoch
    attempt: str = ""  # file name of the start on this machine, without its ending

    def log(self, rank: int) -> Path:
        """Log of a rank in the last start."""
        if self.attempt:
            return self.facts.folder / "log" / f"{self.attempt}{f'.rank{rank}' if rank else ''}.log"
        return Records(self.facts.folder / "log" / "slurm", self.name).log(self.facts.job_id, rank)


def run_logs(arguments: list[str]) -> int:
    """python -m jobs logs RUN [rank=N] [job=NAME] [lines=50] [follow=yes|no]

    Shows the log of the last start of a run, of rank 0 unless another is named. On a terminal it stays with the job until
    that ends; Ctrl-C ends the view, not the job. Elsewhere it prints the last lines. `job` chooses among several jobs in
    one folder.
    """
    folder, own = _settings(arguments, "logs", ("rank", "job", "lines", "follow"))
    rank, lines = _number(own, "rank", 0), _number(own, "lines", 50)
    follow = _flag(own, "follow", sys.stdout.isatty())
    source = choose(sources(folder), own.get("job", ""), folder)
    log = source.log(rank)
    row = _state(source)
    if not log.exists() and not (follow and row.live):
        there = [number for number in range(4096) if source.log(number).exists()]
        if rank and there:
            raise InputError(f"{log} does not exist: {source.name} has logs of ranks {there[0]} to {there[-1]}")
        print(_line(source, row) + ("" if row.live else f"; there is no log {log}"))
        return 0
    try:
        if follow:
            _follow(source, log, lines, row, sys.stdout)
        else:
            show_tail(log, lines, sys.stdout)
    except KeyboardInterrupt:
        print()
    return 0


def run_cancel(arguments: list[str]) -> int:
    """python -m jobs cancel RUN [job=NAME] [now=yes] [wait=600]

    Ends the job of a run. A job that runs is asked to finish its step and save, and is waited for, `wait` seconds at most;
    then, or at once with now=yes, it is ended as it is. Jobs that wait for it are cancelled with it.
    """
    folder, own = _settings(arguments, "cancel", ("job", "now", "wait"))
    now, wait = _flag(own, "now", False), _number(own, "wait", 600)
    found = sources(folder)
    live = [source for source in found if _state(source).live]
    if not live and not own.get("job"):
        print(f"{folder}: nothing of it runs or waits")
        return 0
    source = choose(live or found, own.get("job", ""), folder)
    row = _state(source)
    if not row.live:
        print(f"{_line(source, row)}; nothing of it runs or waits")
        return 0
    if source.facts.job is None or source.attempt:
        return _end_here(source, now, wait)
    return _end_queued(source, row, now, wait)


def sources(folder: Path) -> list[Source]:
    """The jobs of a folder, the last start of each name.

    Raises:
        InputError: there is none.
    """
    every = folder_facts(folder)
    beside = next((facts for facts in every if facts.is_run), Facts(folder))
    found: dict[str, Source] = {
        facts.name: Source(facts.name, facts, float(facts.job["submitted"])) for facts in every if facts.job
    }
    for path in (folder / "log").iterdir() if (folder / "log").is_dir() else ():
        match = _LOCAL.fullmatch(path.name)
        if match and not match["rank"]:
            started = time.mktime(time.strptime(match["stamp"][:15], "%Y%m%d-%H%M%S"))
            source = Source(match["name"], beside, started, f"{match['name']}-{match['stamp']}")
            former = found.get(source.name)
            if former is None or (former.started, former.attempt) < (started, source.attempt):
                found[source.name] = source
    if not found:
        raise InputError(nothing_in(folder))
    return sorted(found.values(), key=lambda source: source.name)


def choose(found: list[Source], name: str, folder: Path) -> Source:
    """The job called `name`; without a name the only one, or the one that makes the run.

    Raises:
        InputError: there is no such job, or several to choose from.
    """
    names = ", ".join(f"job={source.name}" for source in found)
    if name:
        for source in found:
            if source.name == name:
                return source
        raise InputError(f"{folder} has no job={name}; there are {names}")
    if len(found) == 1:
        return found[0]
    makers = [source for source in found if source.facts.is_run and source.name in (source.facts.name, folder.name)]
    if not makers:
        raise InputError(f"{folder} has logs of several jobs: choose one with {names}")
    return max(makers, key=lambda source: source.started)


def tail(log: Path, count: int) -> tuple[list[str], int]:
    """The last `count` lines of a log but the very last one, and the offset in bytes at which that one begins. Of
    progress lines of the same name in a row there is only the last."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        begin = file.seek(max(0, size - _TAIL_BYTES))
        data = file.read(size - begin)
    if begin:
        begin += data.find(b"\n") + 1
        data = data[data.find(b"\n") + 1 :]
    whole = data[:-1] if data.endswith(b"\n") else data
    last = begin + whole.rfind(b"\n") + 1
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in whole.decode("utf-8", errors="replace").split("\n")]
    kept: list[str] = []
    for line, following in zip(lines, lines[1:], strict=False):
        if not (_progress(line) and _progress(line) == _progress(following)):
            kept.append(line)
    return kept[max(0, len(kept) - count + 1) :] if count > 1 else [], last


def show_tail(log: Path, count: int, out: TextIO) -> None:
    """Print the last lines of a log."""
    stream = _begin(log, count, out)
    stream.close()


class _View(LogStream):
    """A log from an offset on, with its tracebacks: who asks for a log looks for a cause."""

    def __init__(self, log: Path, out: TextIO, offset: int) -> None:
        super().__init__(log, out)
        self._offset = offset

    def _show(self, line: str) -> None:
        if line.startswith((LOG_ONLY, "Fatal Python error:")):
            self.note(line)
        else:
            super()._show(line)


def _begin(log: Path, count: int, out: TextIO) -> LogStream:
    lines, offset = tail(log, count) if log.exists() else ([], 0)
    stream = _View(log, out, offset)
    for line in lines:
        stream.note(line)
    return stream


def _follow(source: Source, log: Path, count: int, row: Row, out: TextIO) -> None:
    """Show the log until the job has ended, and say when it waits."""
    stream = _begin(log, count, out)
    told = ""
    try:
        while True:
            asked = time.monotonic()
            if row.state != told and row.state != "running":
                stream.forward()
                stream.note(_line(source, row))
            told = row.state
            if not row.live:
                return
            while time.monotonic() - asked < _ASK_SECONDS:
                stream.forward()
                time.sleep(_SHOW_SECONDS)
            row = _state(source)
    finally:
        stream.close()


def _state(source: Source) -> Row:
    """What the job is doing now."""
    if source.attempt:
        return Row(source.facts.label, "running" if _processes(source) else "finished")
    fresh = [facts for facts in folder_facts(source.facts.folder) if facts.name == source.name]
    every = [*fresh, *(facts for root in ROOTS for facts in find(Path(root)) if facts.job and facts.name != source.name)]
    answers = Answers()
    ask(fresh, answers)
    return judge(every, answers, datetime.now())[0]
