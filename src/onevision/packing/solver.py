"""Which samples share a pack: best-fit decreasing over patterns of the length histogram.

A pattern is a multiset of lengths that fills one pack. The longest length that is left opens a pattern, a
subset sum over the lengths that are left fills it as full as it can be, and the pattern is used as often as
the histogram allows. So the search depends on the number of distinct lengths, not on the number of samples.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from onevision.errors import InputError

Pattern = list[tuple[int, int]]  # (length, how many of it in one pack)


def solve(
    lengths: NDArray[np.integer], capacity: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distribute all samples over packs of at most `capacity` tokens, each sample once.

    Which of the samples of one length comes where, and the order of the packs, are drawn from `seed`.

    Args:
        lengths: tokens a sample, [N], each between 1 and `capacity`.
        capacity: tokens a pack.
        seed: of both random orders.

    Returns:
        pack_start int64 [M+1] and sample int64 [N]: pack m holds sample[pack_start[m]:pack_start[m + 1]].

    Raises:
        InputError: a length is below 1 or above `capacity`.
    """
    if not len(lengths):
        return np.zeros(1, np.int64), np.zeros(0, np.int64)
    if lengths.min() < 1 or lengths.max() > capacity:
        raise InputError(f"lengths {lengths.min()} to {lengths.max()} are not within 1 to {capacity} tokens")
    histogram = np.bincount(lengths, minlength=capacity + 1)
    random = np.random.Generator(np.random.Philox(seed % 2**64))
    shuffled = random.permutation(len(lengths))
    queue = shuffled[np.argsort(lengths[shuffled], kind="stable")]  # by length; in random order within one
    cursor = (np.cumsum(histogram) - histogram).tolist()  # next unused sample of each length in `queue`

    sizes, blocks = [], []
    for repeats, pattern in patterns(histogram.tolist()):
        columns = []
        for length, count in pattern:
            taken = queue[cursor[length] : cursor[length] + repeats * count]
            cursor[length] += repeats * count
            columns.append(taken.reshape(repeats, count))
        block = np.concatenate(columns, axis=1)
        sizes.append(np.full(repeats, block.shape[1]))
        blocks.append(block.ravel())
    return _shuffle_packs(np.concatenate(sizes), np.concatenate(blocks), random)


def patterns(histogram: list[int]) -> list[tuple[int, Pattern]]:
    """Patterns and how often each is used; together they use up `histogram`.

    Args:
        histogram: how many samples of each length there are, [capacity + 1].
    """
    capacity = len(histogram) - 1
    left = list(histogram)
    present = [length for length, count in enumerate(left) if count]
    used = []
    while present:
        longest = present[-1]
        left[longest] -= 1
        counts = dict(best_fill(present, left, capacity - longest))
        left[longest] += 1
        counts[longest] = counts.get(longest, 0) + 1
        pattern = sorted(counts.items(), reverse=True)
        repeats = min(left[length] // count for length, count in pattern)
        used.append((repeats, pattern))
        for length, count in pattern:
            left[length] -= repeats * count
            if not left[length]:
                present.pop(bisect_left(present, length))
    return used


def best_fill(present: list[int], left: list[int], room: int) -> Pattern:
    """The lengths that fill `room` best, preferring long ones so that short ones remain to close later gaps.

    A bounded subset sum: bit s of a Python integer says whether the sum s can be reached. Lengths are added
    from the longest on, and the search ends as soon as `room` is filled exactly.

    Args:
        present: the distinct lengths to choose from, ascending.
        left: how many samples of each length there are, indexed by length.
        room: tokens to fill.
    """
    in_room = (1 << (room + 1)) - 1
    sums = 1
    before: list[tuple[int, int]] = []  # (length, the sums that could be reached without it)
    for length in reversed(present[: bisect_right(present, room)]):
        before.append((length, sums))
        copies, block = min(left[length], room // length), 1
        while copies > 0:  # blocks of 1, 2, 4, … copies reach every number of copies
            step = min(block, copies)
            sums |= sums << (step * length) & in_room
            copies -= step
            block *= 2
        if sums >> room:
            break
    total = sums.bit_length() - 1
    chosen = []
    for length, reached in reversed(before):
        count = 0
        while not reached >> (total - count * length) & 1:
            count += 1
        if count:
            chosen.append((length, count))
            total -= count * length
    return chosen


def _shuffle_packs(
    sizes: NDArray[np.int64], sample: NDArray[np.int64], random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = random.permutation(len(sizes))
    old_start = (np.cumsum(sizes) - sizes)[order]
    new_size = sizes[order]
    pack_start = np.concatenate([[0], np.cumsum(new_size)])
    gather = np.arange(len(sample)) + np.repeat(old_start - pack_start[:-1], new_size)
    return pack_start, sample[gather]
