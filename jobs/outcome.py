"""What becomes of a call inside a job: signals and errors turned into an exit code and a line."""

from __future__ import annotations

import faulthandler
import io
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from onevision.errors import Interrupted, OneVisionError
from onevision.files import storage_errors
from onevision.progress import LOG_ONLY

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@dataclass(frozen=True)
class Outcome:
    """What a process of a job leaves: exit code 0 and its pickled value, or a line for the user."""

    exit_code: int
    message: str = ""
    value: bytes = b""


def likely_cause(outcome: Outcome | None) -> int:
    """The lowest among several ranks that failed is the cause: an error with a line of its own, then a rank that was
    killed (None), then an unexpected exception: when a rank is gone, the others get one from their next collective."""
    if outcome is None:
        return 1
    return 2 if outcome.exit_code == 1 else 0


def outcome_of(name: str, log: Path, work: Callable[[], bytes]) -> Outcome:
    """Do the `work` of job `name`, hearing signals; an error becomes a line, its traceback stays in the log."""
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):  # a log is UTF-8 in whatever locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    stop = _FirstSignal()
    for signum in _STOPS:
        signal.signal(signum, stop)
    try:
        with storage_errors(log.parent):
            return Outcome(0, value=work())
    except OneVisionError as error:
        line = " ".join(str(error).split("\n"))
        _leave_in_log(line)
        return Outcome(error.exit_code, line)
    except KeyboardInterrupt:
        line = f"job {name} was stopped; the same command starts it again"
        return Outcome(Interrupted(line, stop.signum or signal.SIGINT).exit_code, line)
    except Exception as error:
        _leave_in_log(traceback.format_exc())
        what = ": ".join([type(error).__name__, *str(error).split("\n")[:1]])
        return Outcome(1, f"job {name} failed: {what}; see {log}")
    finally:
        # The job is over: a late signal must not keep its outcome from being written.
        for signum in _STOPS:
            signal.signal(signum, signal.SIG_IGN)


def _leave_in_log(text: str) -> None:
    with suppress(OSError):  # the disk may be full
        print(LOG_ONLY, text, flush=True)


class _FirstSignal:
    """Handler of a job that has none of its own: the first signal raises KeyboardInterrupt, a repetition does
    not disturb the cleaning up."""

    def __init__(self) -> None:
        self.signum = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum = signum
            raise KeyboardInterrupt
