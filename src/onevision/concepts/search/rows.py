"""The vectors of a vocabulary as compiled code reads them: float32, or the bits of float16 as uint16.

Half precision stays as it is, mapped from its file where it was: the ranks of a node then share its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096  # vectors that are float32 at once

F4 = NDArray[np.float32]


def as_rows(embedding: NDArray[Any]) -> NDArray[Any]:
    """Rows of a float16 or float32 matrix; no copy where it is contiguous."""
    rows = np.ascontiguousarray(embedding)
    return rows.view(np.uint16) if rows.dtype == np.float16 else rows


def float32(rows: NDArray[Any]) -> F4:
    """Some rows in single precision; no copy where they are."""
    return rows.view(np.float16).astype(np.float32) if rows.dtype == np.uint16 else rows


def blocks(rows: NDArray[Any]) -> Iterator[tuple[slice, F4]]:
    """All rows in single precision, a block at a time, with its place."""
    for begin in range(0, len(rows), BLOCK):
        place = slice(begin, min(begin + BLOCK, len(rows)))
        yield place, float32(rows[place])
