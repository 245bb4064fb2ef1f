"""A data step that MPI ranks share: srun starts them on a cluster, mpiexec on this machine, and one rank needs neither.

    python -m mpi4py -m jobs.shared FOLDER      a rank that mpiexec has started; FOLDER/call.pkl says what to do
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import psutil

from jobs.attempt import runs
from jobs.outcome import Outcome, outcome_of
from onevision.errors import InputError, OneVisionError
from onevision.files import read_json, write_json
from onevision.ranks import find_ranks

_CALL, _VALUE = "call.pkl", "value.pkl"
_LOG = Path("the job's log")  # what a rank prints stands there, under a name that only the launcher knows
_PATIENCE_SECONDS = 10.0  # that ranks have to end after mpiexec was told to stop


class RankFailed(OneVisionError):
    """A rank of a shared step ended badly: its line and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def as_rank(build: Callable[..., Any], *args: Any) -> Any:
    """`build(*args, ranks=…)` among the ranks that this process was started with. Only rank 0 reports."""
    ranks = find_ranks()
    reports = {} if ranks.rank == 0 else {"report": _say_nothing}
    return build(*args, ranks=ranks, **reports)


def by_mpiexec(processes: int, build: Callable[..., Any], *args: Any) -> Any:
    """The same in `processes` ranks on this machine; the value of rank 0.

    Raises:
        RankFailed: with the line of the first rank that ended badly; the others were ended.
        InputError: there is no mpiexec.
    """
    mpiexec = Path(sys.executable).with_name("mpiexec")
    found = str(mpiexec) if mpiexec.exists() else shutil.which("mpiexec")
    if found is None:
        raise InputError(f"{processes} ranks need mpiexec: run `make setup`, load an MPI module, or ask for ranks=1")
    with tempfile.TemporaryDirectory(prefix="onevision-ranks-") as name:
        folder = Path(name)
        (folder / _CALL).write_bytes(cloudpickle.dumps((os.getpid(), build, args)))
        command = [found, "-n", str(processes), sys.executable, "-u", "-m", "mpi4py", "-m", "jobs.shared", name]
        code = _wait(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        if code == 0:
            return pickle.loads((folder / _VALUE).read_bytes())
        ends = sorted((read_json(path) for path in folder.glob("*.json")), key=lambda row: row["time"])
    if ends:
        raise RankFailed(ends[0]["message"], ends[0]["exit_code"])
    line = f"a rank was killed from outside (kill -9, out of memory) or crashed: mpiexec ended with exit code {code}"
    raise RankFailed(line, 128 + signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for mpiexec; an interruption ends it and its ranks."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def _say_nothing(line: str) -> None:
    """The report of a rank that is not the first."""


def _end_with(process: psutil.Process) -> None:
    """End this process within a second of the end of another one."""

    def watch() -> None:
        while runs(process):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: Path) -> None:
    """A rank: do the call, leave the value of rank 0 or the line of an error, and take the others along."""
    ranks = find_ranks()
    launcher, build, args = pickle.loads((folder / _CALL).read_bytes())
    _end_with(psutil.Process(launcher))
    outcome = outcome_of(build.__name__, _LOG, lambda: cloudpickle.dumps(as_rank(build, *args)))
    if outcome.exit_code:
        _leave(folder / f"{ranks.rank}.json", outcome)
        ranks.abort(outcome.exit_code)
        sys.exit(outcome.exit_code)
    if ranks.rank == 0:
        (folder / _VALUE).write_bytes(outcome.value)


def _leave(path: Path, outcome: Outcome) -> None:
    write_json(path, {"exit_code": outcome.exit_code, "message": outcome.message, "time": time.monotonic()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
