"""Training on several ranks of this machine, in processes that are forked and can be killed.

They are forked from a server that has imported torch and Megatron and done nothing else: a fork of the calling process
would inherit locks of threads that do not exist in it, and importing takes ten seconds of a core.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from onevision.errors import OneVisionError
from onevision.model.device import Ranks

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["benchmarks.loaded"])


class Failed(Exception):
    """A rank ended with an error: its number, exit code and what it said."""

    def __init__(self, rank: int, code: int | None, said: str) -> None:
        super().__init__(f"rank {rank} ended with exit code {code}: {said}")
        self.rank, self.code, self.said = rank, code, said


def run_ranks(count: int, call: Callable[..., Any], *args: Any, seconds: float = 300.0) -> None:
    """Run `call(*args, ranks)` on `count` ranks, each a process; what they print is thrown away.

    Raises:
        Failed: a rank ended with an error, or was still running after so many seconds; the others are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder)
        processes = []
        for rank in range(count):
            ranks = Ranks(rank, count, rank, count, f"file://{folder}/rendezvous")
            process = SERVER.Process(target=_body, args=(said / str(rank), call, (*args, ranks)))
            process.start()
            processes.append(process)
        try:
            _wait(processes, said, time.monotonic() + seconds)
        finally:
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid or 0, signal.SIGKILL)
                process.join()


def _wait(processes: list[BaseProcess], said: Path, end: float) -> None:
    while any(process.is_alive() for process in processes):
        for rank, process in enumerate(processes):
            if process.exitcode not in (None, 0):
                raise Failed(rank, process.exitcode, _line(said / str(rank)))
        if time.monotonic() > end:
            raise Failed(next(n for n, process in enumerate(processes) if process.is_alive()), None, "still running")
        time.sleep(0.02)
    for rank, process in enumerate(processes):
        if process.exitcode != 0:
            raise Failed(rank, process.exitcode, _line(said / str(rank)))


def _line(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else "nothing"


def _body(said: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        call(*args)
    except OneVisionError as error:
        said.write_text(str(error), encoding="utf-8")
        os._exit(error.exit_code)
    except BaseException:
        said.write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)
    os._exit(0)
