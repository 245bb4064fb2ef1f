"""A rank that hangs ends by itself, with the stacks of its threads in its log, instead of holding its nodes for days.

One rank that stops (a dead file system, a GPU or link that does not answer, a bug) blocks all others in the next
collective, and nothing raises. So each rank watches itself: all of them leave their stacks, and the one that differs
from the others is the one to look at.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from onevision.errors import Hung
from onevision.progress import LOG_ONLY

_STDERR = 2  # not sys.stderr, whose lock the thread that hangs may hold


class Heartbeat:
    """Ends this process with the exit code of `Hung` when `beat` was not called for `seconds` (0: never).

    A thread looks about once a second. It counts the time during which it could look: a job that was paused as a whole
    (SIGSTOP, `scontrol suspend`, a closed laptop) goes on where it was. Should it be kept from looking by a call that
    holds the interpreter's lock, `faulthandler` ends the process, with exit code 1, after `2 * seconds`: its timer
    needs no interpreter. That timer counts a pause by SIGSTOP, but not one of the whole machine.

    `on_hang(message, step)` is called before the end, in a thread of its own, to leave a record; it has as long as the
    other ranks are given to leave their stacks: an eighth of `seconds`, at most 10.
    """

    def __init__(self, seconds: float, on_hang: Callable[[str, int], None] | None = None) -> None:
        self.seconds, self._on_hang = seconds, on_hang
        self._tick = min(1.0, seconds / 10)
        self._grace = min(10.0, seconds / 8)
        self._at = (0, "starting")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def beat(self, step: int, phase: str) -> None:
        """Say that the rank goes on, and what it does now: `phase` is a part of step number `step`."""
        self._at = (step, phase)  # a new tuple each time: its identity is the sign of life

    def __enter__(self) -> Heartbeat:
        if self.seconds:
            self._arm(2 * self.seconds)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching. It does not return once the rank is found hung: what the end of the other ranks then raises
        here must not hide the cause."""
        if self.seconds:
            self._closed.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen, silence = self._at, 0.0
        looked = time.monotonic()
        while not self._closed.wait(self._tick):
            self._arm(2 * self.seconds)
            before, looked = looked, time.monotonic()
            if self._at is not seen:
                seen, silence = self._at, 0.0
            else:
                silence += min(looked - before, 2 * self._tick)  # more: this thread did not run either
            if silence >= self.seconds:
                self._end(*seen)

    def _arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)  # 0.05 ms: it replaces a thread

    def _end(self, step: int, phase: str) -> None:
        where = f"step {step}, {phase}" if step else phase
        message = f"hung: {where} took more than {self.seconds:g} s; the stacks of all threads are in the rank's log"
        self._arm(2 * self.seconds)  # the log's file system may be what hangs
        with suppress(OSError):
            os.write(_STDERR, f"{LOG_ONLY} {message}\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        if self._on_hang is not None:
            threading.Thread(target=self._on_hang, args=(message, step), name="on_hang", daemon=True).start()
        time.sleep(self._grace)
        os._exit(Hung.exit_code)
