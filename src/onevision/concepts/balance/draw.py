"""The M samples with the lowest keys of all ranks, in cells that are drawn from separately.

No key leaves its rank: the bound of a cell is found 16 bits at a time, from histograms that the ranks add up. What they
exchange is half a megabyte a cell and round, whatever the number of samples. Equal keys, which are very rare, are told
apart by the hash of the id, then by the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.keys import KEPT_BITS, NEVER
from onevision.ranks import Ranks

_BITS = 16
_LAST_ID, _LAST_ROW = np.uint64(2**64 - 1), np.int64(2**63 - 1)


@dataclass(frozen=True)
class Piece:
    """The samples of one part in a draw: `key` u8, `cell` u2 [n]; their rows are counted on from `first_row`."""

    part: int
    first_row: int
    key: NDArray[np.uint64]
    cell: NDArray[np.uint16]


@dataclass(frozen=True)
class Bounds:
    """The last sample that is drawn from each cell: its key u8, id hash u8 and row i8 [cells]."""

    key: NDArray[np.uint64]
    id_hash: NDArray[np.uint64]
    row: NDArray[np.int64]

    @classmethod
    def coins(cls, cells: int) -> Bounds:
        """Those that draw every sample whose coin has kept it."""
        return cls(np.full(cells, KEPT_BITS), np.full(cells, _LAST_ID), np.full(cells, _LAST_ROW))

    def drawn(self, piece: Piece, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which samples of a part are drawn, bool [n]; `ids` are their hashes."""
        found = np.empty(len(ids), np.bool_)
        _drawn(piece.key, ids, piece.first_row, piece.cell, self.key, self.id_hash, self.row, found)
        return found


@numba.njit(cache=True, nogil=True)
def _drawn(key: Any, ids: Any, first: int, cell: Any, last_key: Any, last_id: Any, last_row: Any, found: Any) -> None:
    for row in range(len(key)):
        c = cell[row]
        if key[row] != last_key[c]:
            found[row] = key[row] < last_key[c]
        elif ids[row] != last_id[c]:
            found[row] = ids[row] < last_id[c]
        else:
            found[row] = first + row <= last_row[c]


@numba.njit(cache=True, nogil=True)
def _histogram(key: Any, cell: Any, prefix: Any, shift: Any, histogram: Any) -> None:
    """Count the 16 bits above `shift` of the keys whose higher bits are those of `prefix` [cells]."""
    above = shift + np.uint64(_BITS)
    for row in range(len(key)):
        c = cell[row]
        if key[row] == NEVER or (above < 64 and key[row] >> above != prefix[c]):
            continue
        histogram[c, (key[row] >> shift) & np.uint64(2**_BITS - 1)] += 1


def available(pieces: Sequence[Piece], cells: int, ranks: Ranks) -> NDArray[np.int64]:
    """Samples of all ranks in each cell that can be drawn, i8 [cells]."""
    counts = np.zeros(cells, np.int64)
    for piece in pieces:
        counts += np.bincount(piece.cell[piece.key != NEVER], minlength=cells)
    return ranks.sum(counts)


def lowest(pieces: Sequence[Piece], ids_of: Any, wanted: NDArray[np.int64], ranks: Ranks) -> Bounds:
    """The bounds that draw `wanted` [cells] samples from each cell, no more than there are; every rank calls it.

    `ids_of(part)` gives the id hashes of a part, u8 [n]; it is asked only where keys are equal.
    """
    cells = len(wanted)
    prefix, left = np.zeros(cells, np.uint64), wanted.astype(np.int64)
    for shift in range(64 - _BITS, -1, -_BITS):
        histogram = np.zeros((cells, 2**_BITS), np.int64)
        for piece in pieces:
            _histogram(piece.key, piece.cell, prefix, np.uint64(shift), histogram)
        until = np.cumsum(ranks.sum(histogram), axis=1)
        for c in range(cells):
            digit = int(np.searchsorted(until[c], left[c])) if left[c] else 0
            left[c] -= until[c, digit - 1] if digit else 0
            prefix[c] = prefix[c] << np.uint64(_BITS) | np.uint64(digit)
    bounds = Bounds(prefix, np.zeros(cells, np.uint64), np.full(cells, -1, np.int64))
    for c, tied in enumerate(_tied(pieces, ids_of, bounds.key, ranks)):
        if left[c]:
            bounds.id_hash[c], bounds.row[c] = sorted(tied)[int(left[c]) - 1]
    return bounds


def _tied(pieces: Sequence[Piece], ids_of: Any, key: NDArray[np.uint64], ranks: Ranks) -> list[list[tuple[int, int]]]:
    """Id hash and row of all samples that have the key of their cell's bound: one a cell, but for equal keys."""
    own: list[list[tuple[int, int]]] = [[] for _ in key]
    for piece in pieces:
        rows = np.flatnonzero(piece.key == key[piece.cell])
        if len(rows):
            ids = ids_of(piece.part)[rows].tolist()
            for c, id_hash, row in zip(piece.cell[rows].tolist(), ids, rows.tolist(), strict=True):
                own[c].append((id_hash, piece.first_row + row))
    gathered = ranks.gather(own)
    return [[entry for rank in gathered for entry in rank[c]] for c in range(len(key))]
