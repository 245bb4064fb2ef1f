"""Memory that is used again: for a large array the system has to map and zero new memory, page by page, which takes a
good part of the time that decoding into it takes."""

from __future__ import annotations

import sys
import threading

import numpy as np
from numpy.typing import NDArray


def _count_of_free() -> int:
    """References to a thing in a list while a loop looks at it, as `Buffers.take` does: they differ among Pythons."""
    for thing in [object()]:
        count = sys.getrefcount(thing)
    return count


_FREE = _count_of_free()


class Buffers:
    """Float32 arrays of `columns` columns. One is free again when nothing refers to it any more, nor to a view of it or
    a tensor on its memory. Several threads may take from it.
    """

    def __init__(self, rows: int, columns: int) -> None:
        """`rows` is what an array that is used again has; what is not used of them takes no memory."""
        self._shape = (rows, columns)
        self._buffers: list[NDArray[np.float32]] = []
        self._lock = threading.Lock()

    def take(self, rows: int) -> NDArray[np.float32]:
        """An array [rows, columns] of unknown content; one of its own where it has more rows than the others."""
        if rows > self._shape[0]:  # a question may have more images than a pack
            return np.empty((rows, self._shape[1]), np.float32)
        with self._lock:
            for buffer in self._buffers:
                if sys.getrefcount(buffer) == _FREE:
                    return buffer[:rows]
            self._buffers.append(np.empty(self._shape, np.float32))
            return self._buffers[-1][:rows]
