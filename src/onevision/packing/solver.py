"""Which samples share a pack, when tokens alone are bounded: patterns of lengths, filled with samples in random order.

The patterns cost next to nothing (`patterns`); what takes the time is to bring the samples into the order of the packs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.packing.draws import shuffle
from onevision.packing.patterns import find_patterns

Array = NDArray[Any]


def solve(lengths: NDArray[np.int32], capacity: int, state: NDArray[np.uint64]) -> tuple[Array, Array]:
    """Distribute all samples over packs of at most `capacity` tokens, each sample once.

    Which of the samples of one length comes where, and the order of the packs, are drawn from the stream `state`.

    Args:
        lengths: tokens a sample, [N], each between 1 and `capacity`.
        capacity: tokens a pack.
        state: of `draws.stream`; it moves on.

    Returns:
        pack_start int64 [M + 1] and sample int32 [N]: pack m holds sample[pack_start[m]:pack_start[m + 1]].

    Raises:
        IndexError: a length is below 1 or above `capacity`.
    """
    histogram = _histogram(lengths, capacity)
    patterns = find_patterns(histogram)
    queue, first = _queue(lengths, histogram, state)
    return _fill(*patterns, queue, first, state)


@numba.njit(cache=True, nogil=True)
def _histogram(lengths: Array, capacity: int) -> Array:
    counts = np.zeros(capacity + 1, np.int64)
    for length in lengths:
        if length < 1 or length > capacity:
            raise IndexError("a length is not within 1 to the capacity")
        counts[length] += 1
    return counts


@numba.njit(cache=True, nogil=True)
def _queue(lengths: Array, histogram: Array, state: Array) -> tuple[Array, Array]:
    """The samples by length, in random order within one, and where each length begins."""
    first = np.cumsum(histogram) - histogram
    place = first.copy()
    queue = np.empty(len(lengths), np.int32)
    for sample in range(len(lengths)):
        length = lengths[sample]
        queue[place[length]] = sample
        place[length] += 1
    for length in range(len(histogram)):
        shuffle(state, queue, first[length], place[length])
    return queue, first


@numba.njit(cache=True, nogil=True)
def _fill(
    repeats: Array, start: Array, lengths: Array, counts: Array, queue: Array, first: Array, state: Array
) -> tuple[Array, Array]:
    packs = repeats.sum()
    order = np.arange(packs)  # where the packs of the patterns, one after the other, go
    shuffle(state, order, 0, packs)
    pack_start = np.zeros(packs + 1, np.int64)
    pack = 0
    for pattern in range(len(repeats)):
        size = counts[start[pattern] : start[pattern + 1]].sum()
        for _ in range(repeats[pattern]):
            pack_start[order[pack] + 1] = size
            pack += 1
    for pack in range(packs):
        pack_start[pack + 1] += pack_start[pack]
    sample = np.empty(len(queue), np.int32)
    pack = 0
    for pattern in range(len(repeats)):
        for _ in range(repeats[pattern]):
            place = pack_start[order[pack]]
            pack += 1
            for item in range(start[pattern], start[pattern + 1]):
                length = lengths[item]
                for _ in range(counts[item]):
                    sample[place] = queue[first[length]]
                    first[length] += 1
                    place += 1
    return pack_start, sample
