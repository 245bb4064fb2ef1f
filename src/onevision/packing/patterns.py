"""Which lengths share a pack when only tokens count: best-fit decreasing over patterns of the length histogram.

A pattern is a multiset of lengths that fills one pack. The longest length that is left opens it, the fewest lengths
that can fill the rest, all as equal as they can be, close it (so that short ones remain to close later gaps), and it is
used as often as the histogram allows. So the search depends on the number of distinct lengths, not on that of samples.
Where no such pattern fits exactly, as when few lengths are left, an exact subset sum finds the fullest one there is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

PAIRS = 256  # pairs that are tried before the subset sum is asked

Array = NDArray[Any]


class Patterns(NamedTuple):
    """Pattern j, used repeats[j] times, holds copies[i] samples of length[i] for i in start[j] to start[j + 1] - 1."""

    repeats: NDArray[np.int64]  # [J]
    start: NDArray[np.int64]  # [J + 1]
    length: NDArray[np.int64]
    copies: NDArray[np.int64]


def find_patterns(histogram: NDArray[np.int64]) -> Patterns:
    """Patterns that together use up `histogram`: how many samples of each length there are, int64 [capacity + 1]."""
    return Patterns(*_search(histogram.astype(np.int64)))


@numba.njit(cache=True, nogil=True)
def _search(left: Array) -> tuple[Array, Array, Array, Array]:
    capacity = len(left) - 1
    lower = np.arange(capacity + 1)  # of a length that has run out: where to look for the next shorter one
    for length in range(1, capacity + 1):
        if not left[length]:
            lower[length] = length - 1
    chosen = np.empty(capacity, np.int64)
    repeats, start, lengths, counts = [0][:0], [0], [0][:0], [0][:0]
    while True:
        longest = _at_most(left, lower, capacity)
        if not longest:
            return np.array(repeats), np.array(start), np.array(lengths), np.array(counts)
        chosen[0] = longest
        left[longest] -= 1
        size = _close(left, lower, capacity - longest, chosen)
        if not size:
            size = _fullest(left, lower, capacity - longest, chosen)
        pattern = np.sort(chosen[:size])
        for length in pattern:
            left[length] += 1
        often, first = left[longest], 0
        for place in range(1, size + 1):
            if place == size or pattern[place] != pattern[first]:
                lengths.append(pattern[first])
                counts.append(place - first)
                often = min(often, left[pattern[first]] // (place - first))
                first = place
        for item in range(start[-1], len(lengths)):
            length = lengths[item]
            left[length] -= often * counts[item]
            if not left[length]:
                lower[length] = length - 1
        repeats.append(often)
        start.append(len(lengths))


@numba.njit(cache=True, nogil=True)
def _at_most(left: Array, lower: Array, length: int) -> int:
    """The longest length up to `length` of which something is left; 0 if there is none."""
    while length > 0:
        while lower[length] != length:
            lower[length] = lower[lower[length]]
            length = lower[length]
        if left[length] or not length:
            return length
        length -= 1  # the pattern that is being made holds the last one
    return 0


@numba.njit(cache=True, nogil=True)
def _close(left: Array, lower: Array, room: int, chosen: Array) -> int:
    """Fill `room` exactly with the fewest lengths, as equal as they can be, none above chosen[0].

    Returns the size of the pattern, whose members stand in `chosen` and are taken from `left`; 0 where none was found.
    """
    size = 1
    while room:
        most = _at_most(left, lower, min(room, chosen[0]))
        if not most:
            break
        members = (room + most - 1) // most
        if members == 2:
            shorter = _at_most(left, lower, room // 2)
            for _ in range(PAIRS):
                longer = room - shorter
                if not shorter or longer > most:
                    break
                if left[longer] > (longer == shorter):
                    chosen[size], chosen[size + 1] = longer, shorter
                    left[longer] -= 1
                    left[shorter] -= 1
                    return size + 2
                shorter = _at_most(left, lower, shorter - 1)
            members = 3
        length = _at_most(left, lower, (room + members - 1) // members)
        if not length:
            break
        chosen[size] = length
        left[length] -= 1
        size += 1
        room -= length
    if not room:
        return size
    for place in range(1, size):
        left[chosen[place]] += 1
    return 0


@numba.njit(cache=True, nogil=True)
def _fullest(left: Array, lower: Array, room: int, chosen: Array) -> int:
    """Fill `room` as far as any lengths that are left can fill it, with long ones first. Returns as `_close`.

    A bounded subset sum: bit s of `sums` says whether s tokens can be reached, last[s] by which length for the first
    time. Lengths are added from the longest on, once for each sample of it, until `room` is reached.
    """
    words = room // 64 + 1
    sums = np.zeros(words, np.uint64)
    sums[0] = 1
    last = np.zeros(words * 64, np.int64)
    length = _at_most(left, lower, room)
    while length and not last[room]:
        new = sums.copy()  # what one more sample of this length can be added to
        jump, by = length // 64, np.uint64(length % 64)
        for _ in range(min(left[length], room // length)):
            any_new = False
            for word in range(words - 1, -1, -1):
                moved = np.uint64(0)
                if word >= jump:
                    moved = new[word - jump] << by
                    if by and word > jump:
                        moved |= new[word - jump - 1] >> (np.uint64(64) - by)
                moved &= ~sums[word]
                new[word] = moved
                if moved:
                    any_new = True
            if not any_new:
                break
            for word in range(words):
                moved = new[word]
                sums[word] |= moved
                while moved:
                    lowest = moved & (~moved + np.uint64(1))
                    last[word * 64 + _bit(lowest)] = length
                    moved ^= lowest
        length = _at_most(left, lower, length - 1)
    total = room
    while total and not last[total]:
        total -= 1
    size = 1
    while total:
        chosen[size] = last[total]
        left[last[total]] -= 1
        total -= last[total]
        size += 1
    return size


@numba.njit(cache=True, nogil=True)
def _bit(power: np.uint64) -> int:
    """The exponent of a power of two."""
    exponent = 0
    while power > np.uint64(1):
        power >>= np.uint64(1)
        exponent += 1
    return exponent
