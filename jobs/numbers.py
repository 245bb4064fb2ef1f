"""Numbers in settings of a command line."""

from __future__ import annotations


def whole(text: str) -> int | None:
    """The whole number of 1 to 18 digits that a text is; None if it is anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
