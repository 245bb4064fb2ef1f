"""A training job of some ranks on this machine, started and watched as `jobs.here` does it: each rank is a process in a
session of its own, with its log, its outcome and its record; a rank that dies takes the others along.

The ranks are forked from a server that has imported torch, so that a start costs no import.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.moments import Injection, arm
from jobs.outcome import Outcome, likely_cause, outcome_of
from jobs.ranks import quiet
from jobs.records import leave_record
from jobs.terminal import LogStream
from onevision.errors import Hung
from onevision.files import read_json, write_json
from onevision.recipe import Recipe

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["benchmarks.loaded", "benchmarks.faults.job"])

KILLED = 128 + signal.SIGKILL
_PEER_SECONDS = 1.0  # how long the others may go on after one has failed; jobs.here gives them ten
LIMIT_SECONDS = 240.0  # a job that is not over then has hung, and that is what is reported
_ORPHAN_SECONDS = 10.0  # until what a rank has started must have ended after it

Disturbance = Callable[[Sequence[int], Path], None]  # from outside: process ids of the ranks, the run folder


@dataclass(frozen=True)
class Setting:
    """How a job is started. `launcher`: others are killed when a rank dies; else they must notice by themselves."""

    ranks: int = 1
    injections: Mapping[int, Sequence[Injection]] = field(default_factory=dict)  # by rank
    outside: Disturbance | None = None
    launcher: bool = True


@dataclass(frozen=True)
class End:
    """How a job ended: its exit code and line, all that a person saw, and what is not as it should be."""

    code: int
    line: str
    shown: str
    logs: tuple[str, ...]  # a rank
    summary: dict[str, Any]
    problems: tuple[str, ...]


def run_job(recipe: Recipe, folder: Path, setting: Setting) -> End:
    """Start the ranks and stay until all are gone. `folder` is a new folder for logs, outcomes and temporary files."""
    folder.mkdir(parents=True)
    ranks = [_Rank(recipe, folder, rank, setting) for rank in range(setting.ranks)]
    for rank in ranks:
        rank.process.start()
    if setting.outside is not None:
        setting.outside([rank.pid for rank in ranks], Path(recipe.output))
    problems = []
    try:
        failed = _follow(ranks, setting.launcher)
    except TimeoutError as error:
        problems.append(str(error))
        failed = ranks[0]
    finally:
        for rank in ranks:
            rank.kill(group=False)
    problems += orphans({rank.pid for rank in ranks})
    logs = tuple(rank.log.read_text(encoding="utf-8", errors="replace") for rank in ranks)
    code, line = (0, "") if failed is None else failed.end()
    shown = _shown(ranks[0].log) + (f"error: {line}\n" if line else "")
    outcome = ranks[0].outcome()
    summary = json.loads(outcome.value) if outcome is not None and outcome.value else {}
    return End(code, line, shown, logs, summary, tuple(problems))


def initialise_apart(recipe: Recipe) -> None:
    """Draw the weights of a stage-0 checkpoint, in a process of its own.

    Raises:
        RuntimeError: it failed; why is on stderr.
    """
    process = SERVER.Process(target=_initialise, args=(recipe,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the weights to start from could not be made: exit code {process.exitcode}")


def _initialise(recipe: Recipe) -> None:
    from onevision.training.loop import initialise

    quiet()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    initialise(recipe)


class _Rank:
    """A process of the job, seen from the launcher."""

    def __init__(self, recipe: Recipe, folder: Path, rank: int, setting: Setting) -> None:
        self.log, self.record = folder / f"{rank}.log", folder / f"{rank}.ended"
        self._outcome = folder / f"{rank}.outcome"
        self.log.touch()
        self.name = recipe.name
        rendezvous = f"file://{folder / 'rendezvous'}"
        place = (rank, setting.ranks, rendezvous)
        files = (self.log, self.record, self._outcome, folder / "elsewhere")
        self.process: BaseProcess = SERVER.Process(
            target=_body, args=(recipe, place, files, tuple(setting.injections.get(rank, ())))
        )

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def outcome(self) -> Outcome | None:
        """What it has left; None while it runs and when it was killed."""
        for path in (self._outcome, self.record):
            if path.exists():
                left = read_json(path)
                return Outcome(left["exit_code"], left["message"], left.get("value", "").encode())
        return None

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        if self.process.is_alive():
            return False
        outcome = self.outcome()
        return outcome is None or outcome.exit_code != 0

    def end(self) -> tuple[int, str]:
        """Exit code and line of a bad end, in the words of jobs.here."""
        outcome = self.outcome()
        if outcome is not None:
            return outcome.exit_code, outcome.message
        return KILLED, f"job {self.name} was killed from outside (kill -9, out of memory) or crashed; see {self.log}"

    def kill(self, *, group: bool) -> None:
        """Kill it if it still runs; as `group` with all that it has started."""
        if group:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self.process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self.process.join()


def _body(
    recipe: Recipe,
    place: tuple[int, int, str],
    files: tuple[Path, Path, Path, Path],
    injections: tuple[Injection, ...],
) -> None:
    log, record, outcome_file, elsewhere = files
    rank, size, rendezvous = place
    os.setsid()
    descriptor = os.open(log, os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(elsewhere_in(elsewhere))
    tempfile.tempdir = None
    os.chdir(elsewhere / "here")
    quiet()
    arm(injections)

    def work() -> bytes:
        from onevision.model.device import Ranks
        from onevision.training.loop import train

        on_hang = partial(leave_record, record, Hung.exit_code)
        return json.dumps(train(recipe, Ranks(rank, size, rank, size, rendezvous), on_hang=on_hang)).encode()

    outcome = outcome_of(recipe.name, log, work)
    left = {"exit_code": outcome.exit_code, "message": outcome.message, "value": outcome.value.decode()}
    write_json(outcome_file, left)
    sys.exit(outcome.exit_code)


def elsewhere_in(folder: Path) -> dict[str, str]:
    """Make the folders where a rank could write instead of into its run folder: its home, the folder of temporary files
    (these two as variables of its environment), and `here`, which it works in. What is written there is found."""
    for name in ("home", "temporary", "here"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary")}


def _follow(ranks: Sequence[_Rank], launcher: bool) -> _Rank | None:
    """Wait for all ranks; the one whose failure is the cause, if any failed.

    Raises:
        TimeoutError: some still run after the limit.
    """
    failed: list[_Rank] = []
    killed = False
    kill_at, end = float("inf"), time.monotonic() + LIMIT_SECONDS
    while True:
        running = [rank for rank in ranks if rank.process.is_alive()]
        new = [rank for rank in ranks if rank not in failed and rank.failed]
        if new and not failed:
            patience = _PEER_SECONDS if all(rank.outcome() for rank in new) else 0.0
            kill_at = time.monotonic() + patience if launcher else float("inf")
        if not killed:
            failed += new
        if time.monotonic() > end:
            raise TimeoutError(f"the job did not end within {LIMIT_SECONDS:.0f} s")
        if launcher and failed and not killed and (time.monotonic() >= kill_at or not running):
            for rank in ranks:
                rank.kill(group=True)
            killed = True
        if not running:
            return min(failed, key=lambda rank: likely_cause(rank.outcome()), default=None)
        time.sleep(0.02)


def orphans(sessions: set[int]) -> list[str]:
    """Processes of these sessions that do not end by themselves; they are killed."""
    end = time.monotonic() + _ORPHAN_SECONDS
    while (left := _of_sessions(sessions)) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        process.kill()
    return [f"process {process.pid} was left behind" for process in left]


def _of_sessions(sessions: set[int]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _shown(log: Path) -> str:
    """What the launcher shows of the log of rank 0."""
    out = io.StringIO()
    LogStream(log, out).close()
    return out.getvalue()
