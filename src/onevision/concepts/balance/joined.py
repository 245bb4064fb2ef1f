"""Union-find: which rows are one by pairs of rows; the first of each set stands for it."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def root(parent: Any, row: int) -> int:
    """The first row of the set of `row`; halves the way there."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@numba.njit(cache=True, nogil=True)
def join(parent: Any, one: int, other: int) -> None:
    """Make the sets of two rows one."""
    a, b = root(parent, one), root(parent, other)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b


@numba.njit(cache=True, nogil=True)
def _join_all(parent: Any, pairs: Any) -> None:
    for k in range(len(pairs)):
        join(parent, pairs[k, 0], pairs[k, 1])
    for row in range(len(parent)):
        parent[row] = root(parent, row)


def pairs_of(parent: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What a union-find over `rows` [n] (ascending) has joined: i8 [m, 2], a row and the first one of its set."""
    _join_all(parent, np.empty((0, 2), np.int64))
    joined = np.flatnonzero(parent != np.arange(len(parent)))
    return np.stack([rows[joined], rows[parent[joined]]], axis=1)


def later_rows(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that are joined with an earlier one by the pairs i8 [m, 2], ascending."""
    rows, numbers = np.unique(pairs, return_inverse=True)
    parent = np.arange(len(rows))
    _join_all(parent, numbers.reshape(-1, 2))
    return rows[parent != np.arange(len(rows))]
