"""Near duplicates by perceptual hashes: two samples with as many images, whose hashes differ by few bits each.

Hashes that differ by at most b of 64 bits, cut into b + r bands, are equal in r bands at least (pigeonhole). So every
pair is met when samples are sorted by each choice of r bands: C(b + r, r) tables, which ranks share. Every pair that
is met is compared as a whole, so the result does not depend on r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.concepts.balance.joined import join, pairs_of, root

_SORTING = 50.0  # comparisons that take as long as sorting a sample does
_MOST_BANDS = 8  # r


@dataclass(frozen=True)
class Hashes:
    """The image hashes of samples: sample i has hash[start[i]:start[i + 1]]."""

    start: NDArray[np.int64]  # [N + 1]
    hash: NDArray[np.uint64]

    def equal(self) -> NDArray[np.int64]:
        """Pairs of samples whose hashes are the same, i8 [m, 2]: a sample and the first one that is its like."""
        rows = np.flatnonzero(np.diff(self.start) > 0)
        starts = self.start.tolist()
        single = np.diff(self.start)[rows] == 1
        digest = np.empty(len(rows), np.uint64)
        digest[single] = self.hash[self.start[rows[single]]]
        for k in np.flatnonzero(~single).tolist():
            row = int(rows[k])
            digest[k] = xxhash.xxh3_64_intdigest(self.hash[starts[row] : starts[row + 1]].tobytes())
        return self._linked(rows, digest, 0)

    def near(self, rows: NDArray[np.int64], bits: int, table: int) -> NDArray[np.int64]:
        """Pairs among `rows` (ascending, with images) that differ by at most `bits` and meet in a table of `tables`."""
        mask = tables(len(rows), bits)[table]
        return self._linked(rows, self.hash[self.start[rows]] & mask, bits)

    def _linked(self, rows: NDArray[np.int64], key: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
        """Pairs of `rows` that have the same key and differ by at most `bits`."""
        parent = np.arange(len(rows))
        _link(self.start, self.hash, rows, np.argsort(key, kind="stable"), key, bits, parent)
        return pairs_of(parent, rows)


def tables(samples: int, bits: int) -> Sequence[np.uint64]:
    """The bits by which samples are sorted, a mask a table; none where equal hashes are all that is asked for."""
    if bits == 0:
        return []
    choices = [r for r in range(1, _MOST_BANDS + 1) if bits + r <= 64]

    def cost(r: int) -> float:
        met = samples / 2.0 ** (64 * r / (bits + r))
        return comb(bits + r, r) * (_SORTING + met)

    r = min(choices, key=cost)
    edges = [64 * k // (bits + r) for k in range(bits + r + 1)]
    bands = [(1 << last) - (1 << first) for first, last in zip(edges, edges[1:], strict=False)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, r)]


@numba.njit(cache=True, nogil=True)
def _link(start: Any, hashes: Any, rows: Any, order: Any, key: Any, bits: int, parent: Any) -> None:
    """Join what is near among neighbours of equal `key` in `order`."""
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and key[order[last]] == key[order[first]]:
            last += 1
        for i in range(first, last):
            apart = 0
            for j in range(i + 1, last):
                one, other = order[i], order[j]
                if parent[other] == parent[one] or root(parent, one) == root(parent, other):
                    continue
                if _near(start, hashes, rows[one], rows[other], bits):
                    join(parent, one, other)
                else:
                    apart += 1
            if not apart:  # all later ones are joined with this one: they need not be compared
                break
        first = last


@numba.njit(cache=True, nogil=True)
def _near(start: Any, hashes: Any, one: int, other: int, bits: int) -> bool:
    a, b = start[one], start[other]
    count = start[one + 1] - a
    if start[other + 1] - b != count:
        return False
    for k in range(count):
        value = hashes[a + k] ^ hashes[b + k]
        differ = 0
        while value:
            value &= value - np.uint64(1)
            differ += 1
            if differ > bits:
                return False
    return True
