"""Progress as plain lines: done, total, rate, ETA. Lines start with MARK so that a terminal can redraw in place."""

from __future__ import annotations

import time
from types import TracebackType

MARK = "▸ "
LOG_ONLY = "[error]"  # from such a line on, a log is for whoever looks for a cause, not for the terminal


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


def bar(share: float, width: int = 20) -> str:
    """A bar of `width` characters filled to `share` (0 to 1)."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "━" * filled + "╌" * (width - filled)


class Progress:
    """Counts `unit`s towards `total` and prints a line at most every `every` seconds, and one at the end."""

    def __init__(self, name: str, total: int, unit: str = "samples", start: int = 0, every: float = 2.0) -> None:
        self.name, self.total, self.unit, self.every = name, total, unit, every
        self.done = self._first = start
        self._began = time.monotonic()
        self._shown = self._began

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.show("")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count and, when it is time, print."""
        self.done += count
        if time.monotonic() - self._shown >= self.every:
            self.show(note)

    def show(self, note: str) -> None:
        """Print the line now."""
        now = time.monotonic()
        self._shown = now
        rate = (self.done - self._first) / max(now - self._began, 1e-9)
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        took = f"took {duration(now - self._began)}" if self.done >= self.total else f"ETA {left}"
        share = self.done / self.total if self.total else 1.0
        parts = [f"{bar(share)} {self.done:,}/{self.total:,} {self.unit}", f"{rate:,.1f}/s", note, took]
        print(f"{MARK}{self.name:<9} " + "  ".join(part for part in parts if part), flush=True)
