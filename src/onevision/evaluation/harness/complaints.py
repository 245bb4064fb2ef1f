"""What a task's scorer says goes wrong while it scores.

Scorers that ask a judge go on when it does not answer, and count the answer as wrong: a score that looks right and is
too low.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from loguru import logger

from onevision.errors import printable

PRINTED = "Failed to get response"  # how CharXiv's scorer says so, on standard output; others log an error


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect, a line each, what is logged as an error by lmms-eval and its tasks, and what such scorers print."""
    found: list[str] = []
    sink = logger.add(lambda message: found.append(_line(str(message))), level="ERROR", format="{message}")
    try:
        with redirect_stdout(_Listening(sys.stdout, found)):
            yield found
    finally:
        logger.remove(sink)


class _Listening:
    """Standard output, of which lines are looked at on their way."""

    def __init__(self, out: TextIO, found: list[str]) -> None:
        self._out, self._found = out, found

    def write(self, text: str) -> int:
        if PRINTED in text:
            self._found.append(_line(text))
        return self._out.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def _line(text: str) -> str:
    return printable(next(iter(text.strip().splitlines()), ""))
