"""A job's log, shown on this terminal while it grows."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from onevision.progress import LOG_ONLY, MARK, bar

_LOG_ONLY = (LOG_ONLY, "Fatal Python error:")
_ERASE = "\r\x1b[2K"
_BAR = re.compile("(━*)╌*(?<=[━╌]) ")
_SHORTEST_BAR = 5  # characters


class LogStream:
    """Shows what is new in a log file.

    Progress lines (those that begin with `onevision.progress.MARK`) redraw in place on a terminal, one line a
    name; elsewhere they are printed like any other line. A traceback stays in the file.
    """

    def __init__(self, log: Path, out: TextIO) -> None:
        self._log, self._out = log, out
        self._offset = 0
        self._rest = b""  # the line that is not complete yet
        self._open = ""  # name of the progress line the cursor stands on
        self._hidden = False
        self._redraw = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def forward(self) -> None:
        """Show the lines that were completed since the last call."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._offset)
                data = log.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._show(line.decode("utf-8", errors="replace"))
        if lines:
            self._out.flush()

    def close(self) -> None:
        """Show what is left, and leave the cursor at the start of a line."""
        self.forward()
        if self._rest:
            self._show(self._rest.decode("utf-8", errors="replace"))
            self._rest = b""
        self._leave_progress()
        self._out.flush()

    def note(self, line: str) -> None:
        """A line of the launcher's own."""
        self._leave_progress()
        self._out.write(f"{line}\n")
        self._out.flush()

    def _show(self, line: str) -> None:
        self._hidden = self._hidden or line.startswith(_LOG_ONLY)
        if self._hidden:
            return
        line = line.rstrip("\r").rpartition("\r")[2]  # a bar that redraws itself: its last state
        if not (self._redraw and line.startswith(MARK)):
            self.note(line)
            return
        name = line.removeprefix(MARK).split(" ", 1)[0]
        if name != self._open:
            self._leave_progress()
        width = shutil.get_terminal_size().columns - 1
        self._out.write(_ERASE + _fitted(line, width))
        self._open = name

    def _leave_progress(self) -> None:
        if self._open:
            self._out.write("\n")
        self._open = ""


def _fitted(line: str, width: int) -> str:
    """A progress line in `width` columns: with a shorter bar, then without fields, from the last but one on, so that
    what is said last, how long it will take, stays.
    """
    if (excess := cell_len(line) - width) <= 0:
        return line
    if found := _BAR.search(line):
        length = len(found[0]) - 1
        shorter = bar(len(found[1]) / length, min(length, max(_SHORTEST_BAR, length - excess)))
        line = f"{line[: found.start()]}{shorter} {line[found.end() :]}"
    fields = line.split("  ")
    while cell_len("  ".join(fields)) > width and len(fields) > 2:
        del fields[-2]
    line = "  ".join(fields)
    return line if cell_len(line) <= width else set_cell_size(line, width)
