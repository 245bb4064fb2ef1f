"""Near duplicates by embedding: samples that share their first concept, with a cosine of at least a bound.

Exact among the samples that have the same first concept; pairs with different first concepts are not looked at. The
work is the sum of the squares of how many samples share a first concept. Cosines are computed in blocks in single
precision; whatever comes near the bound is computed again in double precision in a fixed order, so that the result does
not depend on the library, the machine or the blocks.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.joined import join, pairs_of, root

BLOCK = 1024  # samples that are compared with as many others at once
UNITS = 256  # pieces of the work that ranks share, at most
_MARGIN = 1e-3  # more than single precision loses of a cosine of up to 8,192 dimensions


def first_concepts(matches: NDArray[np.uint16], concept: NDArray[np.int32]) -> NDArray[np.int32]:
    """The first concept of each sample of a part, i4 [n]; -1 where there is none."""
    start = np.cumsum(matches, dtype=np.int64) - matches
    found = np.full(len(matches), -1, np.int32)
    some = matches > 0
    found[some] = concept[start[some]]
    return found


def work_units(first: NDArray[np.int32], left: NDArray[np.bool_]) -> tuple[NDArray[np.int64], list[list[slice]]]:
    """Rows in the order of their first concept, and the work in up to `UNITS` pieces of about the same size.

    `first` i4 [N] are first concepts; only rows that are `left` and have one take part. A piece is a list of slices of
    the rows: those of one concept each, at least two.
    """
    rows = np.flatnonzero(left & (first >= 0))
    rows = rows[np.argsort(first[rows], kind="stable")]
    edges = np.concatenate([[0], np.flatnonzero(np.diff(first[rows])) + 1, [len(rows)]]).astype(np.int64)
    size = np.diff(edges)
    work = np.cumsum(size.astype(np.float64) ** 2)
    piece = np.minimum(work / max(work[-1], 1.0) * UNITS, UNITS - 1).astype(np.int64) if len(rows) else size
    found: dict[int, list[slice]] = {}
    for k in np.flatnonzero(size > 1).tolist():
        found.setdefault(int(piece[k]), []).append(slice(int(edges[k]), int(edges[k + 1])))
    return rows, list(found.values())


def near(embedding: Any, rows: NDArray[np.int64], similarity: float) -> NDArray[np.int64]:
    """Pairs of the samples `rows` (ascending) with a cosine of at least `similarity`, i8 [m, 2]: a row and the first
    one that is joined with it.

    `embedding` is a column [N, D] that can be indexed with rows.
    """
    parent = np.arange(len(rows))
    for i in range(0, len(rows), BLOCK):
        ours = embedding[rows[i : i + BLOCK]].astype(np.float32)
        for j in range(i, len(rows), BLOCK):
            theirs = ours if i == j else embedding[rows[j : j + BLOCK]].astype(np.float32)
            one, other = np.nonzero(_unit(ours) @ _unit(theirs).T >= similarity - _MARGIN)
            _join_near(ours, theirs, one, other, i, j, similarity, parent)
    return pairs_of(parent, rows)


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    return values / np.maximum(length, np.finfo(np.float32).tiny)


@numba.njit(cache=True, nogil=True)
def _join_near(ours: Any, theirs: Any, one: Any, other: Any, i: int, j: int, similarity: float, parent: Any) -> None:
    for k in range(len(one)):
        a, b = i + one[k], j + other[k]
        if a >= b or root(parent, a) == root(parent, b):
            continue
        product, first, second = 0.0, 0.0, 0.0
        for d in range(ours.shape[1]):
            x, y = float(ours[one[k], d]), float(theirs[other[k], d])
            product += x * y
            first += x * x
            second += y * y
        if product > 0.0 and product * product >= similarity * similarity * first * second:
            join(parent, a, b)
