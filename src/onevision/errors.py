"""Errors a user can act on. Each is one line that names the file and the value, and an exit code Slurm can act on.

Exit codes: 2 wrong input, 3 bad data above the threshold, 4 diverged (a rerun would end the same); 73 the folder is
another process's (requeue), 74 storage failed (requeue after making room), 75 interrupted by the system and saved
(requeue), 76 hung (requeue), 77 a result that may be the hardware's fault (requeue on other nodes), 130 interrupted by
a person and saved.
"""

from __future__ import annotations

import signal

LONGEST = 2000  # characters of a line


def printable(text: str) -> str:
    """The text as one line that does nothing to a terminal: what cannot be printed is escaped, a long one is cut."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def line_of(error: BaseException) -> str:
    """An exception of others as a line: its class, and the first line of what it says."""
    return printable(": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]]))


class OneVisionError(Exception):
    """Base of every error that is shown as one line, without a traceback; of several problems each has its line.

    Whatever names, values and paths stand in a line, it is `printable`.
    """

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(printable, lines)))


class InputError(OneVisionError):
    """A recipe, path or value that cannot work."""

    exit_code = 2


class DataError(OneVisionError):
    """Data that is corrupt, missing or rejected above the allowed share."""

    exit_code = 3


class Diverged(OneVisionError):
    """Loss or gradient is no longer a number, or a spike; a restart would only repeat it."""

    exit_code = 4


class StorageError(OneVisionError):
    """Writing failed: disk full, quota, read-only file system. What was complete before is untouched."""

    exit_code = 74


class Interrupted(OneVisionError):
    """Stopped by a signal after the state was saved."""

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 130 if signum == signal.SIGINT else 75


class Busy(OneVisionError):
    """Another process writes into the folder, or has not been seen to end yet."""

    exit_code = 73


class Hung(OneVisionError):
    """A step was not finished in time: this rank, or one that it waits for, does not answer."""

    exit_code = 76


class Suspect(OneVisionError):
    """A bad result that came again on the same hardware, or cannot be repeated: another node has to compute it."""

    exit_code = 77
