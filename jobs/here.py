"""Runs a call as a job and stays with it: shows its log, passes Ctrl-C on, brings back its value or error.

A job is a submitit job. Its processes leave the terminal's process group, so that a signal reaches each of them
exactly once and by one way, from the launcher; what they start (data workers, checkpoint writers) gets none.
A job outlives a launcher that dies, and `launch` refuses to start the same job beside it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import cloudpickle
import psutil
import submitit
from submitit.core.utils import JobPaths, environment_variables, pickle_load

from jobs.attempt import Attempt, new_attempt, process_of, runs
from jobs.call import Call
from jobs.outcome import Outcome, likely_cause
from jobs.terminal import LogStream
from onevision.errors import InputError, Interrupted, OneVisionError
from onevision.files import read_json, storage_errors

# OpenMP's threads spin while they wait for each other. When another process takes one of their cores, that makes a
# product of matrices ten times slower; sleeping costs nothing that can be measured.
QUIET_THREADS = {"OMP_WAIT_POLICY": "passive"}

_POLL_SECONDS = 0.05
_PEER_SECONDS = 10.0  # how long the other processes may go on after one has failed
_SAVED = (75, 130)  # exit codes of Interrupted: each process saves and ends by itself, however long it takes
_AGAIN_SECONDS = 1.0  # make, timeout and others repeat a signal: sooner than this it is the same Ctrl-C
_TEN_YEARS = 10 * 365 * 24 * 60.0  # minutes; submitit ends a local job after 2 unless told otherwise


class JobFailed(OneVisionError):
    """A job that ended badly: the line it left, and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def visible_gpus() -> tuple[int, ...]:
    """CUDA indices a job may use: those of CUDA_VISIBLE_DEVICES if it is set, else one a /dev/nvidia<number>.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names devices by something else than their index.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
        return tuple(range(len(devices)))
    try:
        return tuple(int(index) for index in chosen.split(",") if index.strip())
    except ValueError:
        raise InputError(f"CUDA_VISIBLE_DEVICES={chosen}: give indices instead, such as 0,1") from None


def local_executor(folder: Path, processes: int) -> submitit.LocalExecutor:
    """The executor of this machine: `processes` tasks, a GPU for each while there are any, no time limit."""
    gpus = visible_gpus()[:processes]
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(
        tasks_per_node=processes,
        gpus_per_node=len(gpus),
        visible_gpus=gpus,
        timeout_min=_TEN_YEARS,
        stderr_to_stdout=True,
    )
    return executor


def launch(name: str, call: Callable[..., Any], *args: Any, log_folder: Path, processes: int = 1) -> Any:
    """Run `call(*args)` in a job of `processes` processes and return the value of its rank 0.

    The processes find RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in their environment. The log
    of rank 0 is shown here; each start leaves `<name>-<time>.log` (and `.rank<k>.log`) in `log_folder`. Call it
    from the main thread: it handles SIGINT and SIGTERM while the job runs.

    Raises:
        JobFailed: with the line and the exit code of the OneVisionError raised in the job; an unexpected
            exception gives exit code 1, a killed process 137, both with a line that names the log.
        Interrupted: the job finished in spite of a SIGINT or SIGTERM; nothing should follow it.
        InputError: the job of an earlier start in `log_folder` still runs.
    """
    with _Stop() as stop:
        with storage_errors(log_folder):
            attempt = new_attempt(Path(log_folder).absolute(), name)
            job = _submit(attempt, processes, Call(name, attempt, call, args))
        tasks = [_Task(attempt, rank, job.task(rank).paths) for rank in range(processes)]
        stream = LogStream(tasks[0].paths.stdout, sys.stdout)
        try:
            failed = _follow(job, tasks, stream, stop)
        finally:
            if tasks[0].started:  # before, there is nothing but submitit's own trouble to show
                stream.close()
        attempt.settle()
    if failed is not None:
        raise _error(name, failed, stop)
    if stop.signum:
        raise Interrupted(f"stopped after job {name}, which had finished", stop.signum)
    outcome = tasks[0].outcome
    assert outcome is not None
    return cloudpickle.loads(outcome.value)


def _submit(attempt: Attempt, processes: int, call: Call) -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # submitit's controller would answer the terminal's Ctrl-C with a SIGKILL of the job after a second: it
    # inherits that SIGINT is ignored. Its log lines would stand among the job's.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with environment_variables(SUBMITIT_LOG_LEVEL="CRITICAL", MASTER_PORT=port, **QUIET_THREADS):
            return local_executor(attempt.work, processes).submit(call)
    except BaseException:
        attempt.settle()
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def _follow(job: Any, tasks: list[_Task], stream: LogStream, stop: _Stop) -> _Task | None:
    """Stay with the job until all its processes are gone; the one whose failure is the cause, if any failed."""
    failed: list[_Task] = []
    announced = killed = False
    kill_at = float("inf")
    while True:
        controller_gone = job.done()
        signum = stop.signum
        for task in tasks:
            task.poll(controller_gone)
        new = [task for task in tasks if task.failed and task not in failed]
        if new and not (failed and killed):  # those that are killed for the failure of another are no cause
            failed += new
            kill_at = min(kill_at, time.monotonic() + min(map(_patience, new)))
        if tasks[0].started:
            stream.forward()
        if (stop.at_once or time.monotonic() >= kill_at) and not killed:
            _kill(job, tasks)
            killed = True
        if all(task.ended for task in tasks):
            return min(failed, key=lambda task: likely_cause(task.outcome), default=None)
        if signum and not announced:
            stream.note("stopping after this step and saving; Ctrl-C again to stop at once")
            announced = True
        for task in tasks:
            task.pass_on(signum)
        time.sleep(_POLL_SECONDS)


def _patience(failed: _Task) -> float:
    """Seconds until what is left of the job is killed."""
    if failed.outcome is None:
        return 0.0
    return float("inf") if failed.outcome.exit_code in _SAVED else _PEER_SECONDS


def _kill(job: Any, tasks: list[_Task]) -> None:
    for task in tasks:
        task.kill()
    with suppress(psutil.NoSuchProcess):  # those that have not said who they are yet
        for process in psutil.Process(int(job.job_id)).children():
            process.kill()


def _error(name: str, failed: _Task, stop: _Stop) -> OneVisionError:
    if failed.outcome is not None:
        return JobFailed(failed.outcome.message, failed.outcome.exit_code)
    if stop.at_once:
        return Interrupted(f"job {name} was stopped at once; what it had saved is untouched", stop.signum)
    line = f"job {name} was killed from outside (kill -9, out of memory) or crashed; see {failed.log}"
    return JobFailed(line, 128 + signal.SIGKILL)


class _Stop:
    """Remembers SIGINT and SIGTERM of the launcher while its block runs."""

    def __init__(self) -> None:
        self.signum = 0
        self.at_once = False
        self._since = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._former[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._since = signum, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._since > _AGAIN_SECONDS:
            self.at_once = True


class _Task:
    """A process of the job, seen from the launcher."""

    def __init__(self, attempt: Attempt, rank: int, paths: JobPaths) -> None:
        self.paths = paths
        self.log = attempt.log(rank)
        self.started = self.ended = False
        self.outcome: Outcome | None = None
        self._attempt, self._rank = attempt, rank
        self._pid = 0
        self._process: psutil.Process | None = None
        self._passed_on = False

    @property
    def failed(self) -> bool:
        return bool(self.outcome.exit_code) if self.outcome else self.ended

    def poll(self, controller_gone: bool) -> None:
        """Look again whether it has started, ended, and what it has left."""
        self._attempt.show_log(self._rank, self.paths.stdout)
        identity = self._attempt.identity(self._rank)
        if not self.started and identity.exists():
            self.started = True
            self._pid, self._process = process_of(identity)
        self.ended = not runs(self._process) if self.started else controller_gone
        if self.outcome is None and self.paths.result_pickle.exists():
            kind, result = pickle_load(self.paths.result_pickle)
            self.outcome = result if kind == "success" else self._start_error(str(result))
        record = self._attempt.record(self._rank)
        if self.outcome is None and self.ended and record.exists():
            left = read_json(record)
            self.outcome = Outcome(left["exit_code"], left["message"])

    def pass_on(self, signum: int) -> None:
        """Send the signal once, as soon as the process listens."""
        if signum and self.started and not self._passed_on and runs(self._process):
            self._passed_on = True
            with suppress(ProcessLookupError):
                os.kill(self._pid, signum)

    def kill(self) -> None:
        """Kill it and all that it has started, which may have outlived it."""
        if self._pid:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)

    def _start_error(self, trace: str) -> Outcome:
        return Outcome(1, f"the job could not start: {trace.strip().splitlines()[-1]}; see {self.log}")
