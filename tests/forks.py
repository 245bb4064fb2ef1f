"""Run a call in a process of its own that tests can kill, without importing torch again.

The processes are forked from a server that has imported torch and Megatron and done nothing else: a fork of the test
process itself would inherit locks of threads that do not exist in it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from onevision.errors import OneVisionError

SERVER = multiprocessing.get_context("forkserver")
PRELOAD = ["pytest", "benchmarks.loaded"]


class Forked:
    """A process that runs a call and exits with the exit code of its error, or 0."""

    def __init__(self, process: BaseProcess, error_file: Path) -> None:
        self.process, self._error_file = process, error_file

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.is_alive()

    def signal(self, signum: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.process.pid or 0, signum)

    def join(self, seconds: float = 120.0) -> int | None:
        """Exit code, or None when it still runs after so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL the process; what it started has to notice by itself."""
        if self.process.is_alive():
            os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()

    @property
    def error(self) -> str:
        """The line of the error that ended it, or a traceback."""
        return self._error_file.read_text(encoding="utf-8")


def _body(error_file: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        call(*args)
    except OneVisionError as error:
        error_file.write_text(str(error), encoding="utf-8")
        os._exit(error.exit_code)
    except BaseException:
        error_file.write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)
    os._exit(0)


@contextmanager
def forked(call: Callable[..., Any], *args: Any) -> Iterator[Forked]:
    """Start `call(*args)` in a process; it is killed at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        error_file = Path(folder) / "error"
        error_file.touch()
        process = SERVER.Process(target=_body, args=(error_file, call, args))
        process.start()
        child = Forked(process, error_file)
        try:
            yield child
        finally:
            child.kill()


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.005)
