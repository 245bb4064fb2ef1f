"""The log of a run's job, while it grows; and the end of a job, saved."""

from __future__ import annotations

import difflib
import json
import os
import platform
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

import psutil

from jobs.attempt import process_of, runs
from jobs.facts import Answers, Facts, ask, find_all, folder_facts
from jobs.judge import Row, judge, not_readable
from jobs.numbers import whole
from jobs.records import Records
from jobs.slurm import Queued, Slurm
from jobs.status import nothing_in
from jobs.terminal import LogStream
from onevision.errors import InputError, Interrupted
from onevision.progress import LOG_ONLY, MARK

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

    @property
    def conf(self) -> str:
        """Which Slurm it was queued on."""
        return self.facts.slurm_conf

    @property
    def queued(self) -> bool:
        """Whether Slurm has to be asked about it."""
        return not self.attempt and not self.facts.decided

    @property
    def makes_the_run(self) -> bool:
        """Whether it is the job that trains the run, not one beside it."""
        return self.facts.is_run and self.name in (self.facts.name, self.facts.folder.name)

    def processes(self) -> list[psutil.Process]:
        """Processes of this machine that have to be signalled to end it; none if it does not run here.

        Raises:
            InputError: it runs, on another machine.
        """
        if not self.attempt:
            return []
        lock = self.facts.lock if self.makes_the_run else None
        if lock and lock.held:
            if lock.holder != f"{lock.pid} on {platform.node()}":
                raise InputError(f"{self.facts.folder} is being written by process {lock.holder}: end it there")
            return [psutil.Process(lock.pid)]  # the other ranks stop with it
        identities = (self.facts.folder / "log" / f".{self.attempt}").glob("[0-9]*.json")
        ours = [path for path in identities if json.loads(path.read_text())["host"] == socket.gethostname()]
        return [process for _, process in map(process_of, ours) if process is not None and runs(process)]


def run_logs(arguments: list[str]) -> int:
    """python -m jobs logs RUN [rank=N] [job=NAME] [lines=50] [follow=yes|no]

    Shows the log of the last start of a run, of rank 0 unless another is named. On a terminal it stays with the job
    until that ends; Ctrl-C ends the view, not the job. Elsewhere it prints the last lines. `job` chooses among several
    jobs in one folder.
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
    if follow:
        with suppress(KeyboardInterrupt):
            _follow(source, log, lines, row, sys.stdout)
    else:
        show_tail(log, lines, sys.stdout)
    return 0


def run_cancel(arguments: list[str]) -> int:
    """python -m jobs cancel RUN [job=NAME] [now=yes] [wait=600]

    Ends the job of a run. A job that runs is asked to finish its step and save, and is waited for, `wait` seconds at
    most; then, or at once with now=yes, it is ended as it is. Jobs that wait for it are cancelled with it.
    """
    folder, own = _settings(arguments, "cancel", ("job", "now", "wait"))
    now, wait = _flag(own, "now", False), _number(own, "wait", 600)
    found = sources(folder)
    owners = {owner for source in found for owner in source.facts.owners}
    queues = {source.conf: Slurm(source.conf).queue(owners) for source in found if source.queued}
    live = [source for source in found if _in_queue(source, queues) or source.processes()]
    if own.get("job"):
        choose(found, own["job"], folder)
        live = [source for source in live if source.name == own["job"]]
    if not live:
        print(f"{folder}: nothing of it runs or waits")
        return 0
    source = choose(live, "", folder)
    queued = _in_queue(source, queues)
    try:
        if queued is None:
            _end_here(source, now, wait)
        else:
            _end_queued(source, queued, queues[source.conf], now, wait)
    except KeyboardInterrupt:
        raise Interrupted(f"no longer waiting for {source.name}, which still saves and ends: see make status") from None
    return 0


def sources(folder: Path) -> list[Source]:
    """The jobs of a folder, the last start of each name.

    Raises:
        InputError: it is no folder of a run or of jobs, or may not be read.
    """
    every = folder_facts(folder)
    for facts in every:
        if facts.unreadable:
            raise InputError(not_readable(facts))
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
    if not found and not every:
        raise InputError(nothing_in(folder))
    return sorted(found.values(), key=lambda source: source.name)


def choose(found: list[Source], name: str, folder: Path) -> Source:
    """The job called `name`; without a name the only one, or the one that makes the run.

    Raises:
        InputError: there is no such job, or several to choose from.
    """
    names = ", ".join(f"job={source.name}" for source in found) or "none"
    if name:
        for source in found:
            if source.name == name:
                return source
        raise InputError(f"{folder} has no job={name}; there are {names}")
    if len(found) == 1:
        return found[0]
    makers = [source for source in found if source.makes_the_run]
    if not found:
        raise InputError(f"{folder} has no log of its own: its run was made by a job in another folder")
    if not makers:
        raise InputError(f"{folder} has several jobs: choose one with {names}")
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
            while time.monotonic() - asked < (_SHOW_SECONDS if source.attempt else _ASK_SECONDS):
                stream.forward()
                time.sleep(_SHOW_SECONDS)
            row = _state(source)
    finally:
        stream.close()


def _end_queued(source: Source, queued: Queued, queue: dict[int, Queued], now: bool, wait: int) -> None:
    slurm, number, owners = Slurm(source.conf), source.facts.job_id, source.facts.owners
    every = find_all() + folder_facts(source.facts.folder)
    after = waiting_for(number, [facts for facts in every if facts.slurm_conf == source.conf and facts.job_id in queue])
    if after:
        names = ", ".join(f"{name} (job {each})" for each, name in sorted(after.items()))
        print(f"cancelled with it: {names}", flush=True)
    title = f"{source.name} (job {number})"
    if queued.state == "RUNNING" and not now and source.facts.has_news:
        slurm.cancel(number, "INT")
        _wait(f"{title} finishes its step and saves", lambda: _ended(slurm.queue(owners).get(number)), wait, poll=1.0)
        left = slurm.queue(owners).get(number)
        if _ended(left):
            if left is not None and left.state == "PENDING":  # it was not ready to listen, and was queued again
                slurm.cancel(number)
            print(f"{title}: {_last_message(source) or 'ended'}")
            return
        print(f"{title} has not ended within {wait} s")
    slurm.cancel(number)
    print(f"{title}: cancelled; what it had saved is untouched")


def _end_here(source: Source, now: bool, wait: int) -> None:
    processes = source.processes()
    title = f"{source.name} (process {', '.join(str(process.pid) for process in processes)})"
    if not now:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
        if _wait(f"{title} finishes its step and saves", lambda: not any(map(runs, processes)), wait, poll=0.1):
            print(f"{title}: ended")
            return
        print(f"{title} has not ended within {wait} s")
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    print(f"{title}: killed; what it had saved is untouched")


def waiting_for(number: int, facts: list[Facts]) -> dict[int, str]:
    """Jobs that wait for job `number`, or for one that does: number -> name."""
    found: dict[int, str] = {}
    reached = {number}
    while True:
        more = {each.job_id: each.name for each in facts if each.job and reached & set(map(int, each.job["after"]))}
        if set(more) <= set(found):
            return found
        found |= more
        reached |= set(more)


def _ended(queued: Queued | None) -> bool:
    return queued is None or queued.state in ("PENDING", "COMPLETING")


def _last_message(source: Source) -> str:
    fresh = [facts for facts in folder_facts(source.facts.folder) if facts.job_id == source.facts.job_id]
    own = fresh[0].own_events if fresh else []
    return str(own[-1]["message"]) if own and own[-1]["event"] == "end" else ""


def _in_queue(source: Source, queues: dict[str, dict[int, Queued]]) -> Queued | None:
    return queues.get(source.conf, {}).get(source.facts.job_id) if source.queued else None


def _wait(what: str, ended: Callable[[], bool], seconds: int, poll: float) -> bool:
    """Wait at most so long, and say so: on a terminal in one line that counts."""
    began, redraw = time.monotonic(), sys.stdout.isatty()
    if not redraw:
        print(f"{what}: waiting up to {seconds} s", flush=True)
    try:
        while not ended():
            passed = time.monotonic() - began
            if passed >= seconds:
                return False
            if redraw:
                print(f"\r\x1b[2K{what}: {passed:.0f} s of at most {seconds}", end="", flush=True)
            time.sleep(poll)
        return True
    finally:
        if redraw:
            print("\r\x1b[2K", end="", flush=True)


def _state(source: Source) -> Row:
    """What the job is doing now."""
    if source.attempt:
        (now, *_) = [each for each in sources(source.facts.folder) if each.name == source.name]
        held = now.makes_the_run and now.facts.lock is not None and now.facts.lock.held
        live = held or bool(now.processes())
        return Row(source.facts.label, "running" if live else "ended", live=live)
    fresh = [facts for facts in folder_facts(source.facts.folder) if facts.name == source.name]
    answers = Answers()
    ask(fresh, answers)
    return judge([*find_all(), *fresh], answers, datetime.now())[-1]


def _line(source: Source, row: Row) -> str:
    job = f" (job {source.facts.job_id})" if not source.attempt else ""
    return ": ".join(text for text in (f"{source.name}{job}", row.state, row.why, row.message) if text)


def _progress(line: str) -> str:
    """Name of a progress line; empty for other lines."""
    return line.removeprefix(MARK).split(" ", 1)[0] if line.startswith(MARK) else ""


def _settings(arguments: list[str], job: str, known: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    paths = [argument for argument in arguments if "=" not in argument]
    own = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if len(paths) != 1:
        raise InputError(f"{job} takes one run folder and key=value settings, not {' '.join(paths) or 'none'}")
    for key in own:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise InputError(f"{job}: unknown setting {key!r}; the nearest is {near!r}")
    return Path(paths[0]), own


def _number(own: dict[str, str], key: str, otherwise: int) -> int:
    number = whole(own.get(key, str(otherwise)))
    if number is None:
        raise InputError(f"{key}={own[key]} is not a number")
    return number


def _flag(own: dict[str, str], key: str, otherwise: bool) -> bool:
    if key not in own:
        return otherwise
    if own[key] not in _YES:
        raise InputError(f"{key}={own[key]} is neither yes nor no")
    return _YES[own[key]]
