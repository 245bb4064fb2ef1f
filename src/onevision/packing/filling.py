"""Filling packs up with short samples, drawn at random, full to the token and to a wanted cost.

The short samples stand in cells of one length and one class (their share of image patches); a cell is a stack in random
order. Compiled code gets the arrays one by one: reading them out of a tuple counts references, which costs more than
the work itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.packing.draws import below, shuffle

CLASSES = 16
PATCHES_A_TOKEN = 4
QUANTILES = 4096  # lengths that are drawn from
SURVEYS = 64  # of what is left, while packs are filled
TRIES = 32  # random pairs that are tried to fill a pack to the token
NEAR = 256  # pairs that are looked through where chance found none
SAVED = 4  # a pack may be this many times further below the mean of patches than the bound is above it
ATTEMPTS = 8  # lengths that are tried where the patches of none fit

Array = NDArray[Any]


class Pool(NamedTuple):
    """Short samples, shorter than `split`, that are not in a pack yet."""

    queue: NDArray[np.int64]  # the sample's patches << 32 | the sample
    cells: NDArray[np.int32]  # [split x CLASSES, 2] the cell is queue[first:end]
    filled: NDArray[np.int32]  # [split] bit k: class k is not empty
    lower: NDArray[np.int32]  # [split] of a length that has run out: where to look for the next shorter one


@numba.njit(cache=True, nogil=True)
def make_pool(lengths: Array, patches: Array, split: int, state: Array) -> Pool:
    """Sort the samples shorter than `split` into cells, in random order within one."""
    cells = np.zeros((split * CLASSES, 2), np.int32)
    cell_of = np.full(len(lengths), -1, np.int32)
    for sample in range(len(lengths)):
        length = int(lengths[sample])
        if length < split:
            cell = length * CLASSES + patches[sample] * CLASSES // (PATCHES_A_TOKEN * length + 1)
            cell_of[sample] = cell
            cells[cell, 1] += 1
    place = 0
    for cell in range(len(cells)):
        cells[cell, 0] = place
        place += cells[cell, 1]
        cells[cell, 1] = cells[cell, 0]
    queue = np.empty(place, np.int64)
    for sample in range(len(lengths)):
        cell = cell_of[sample]
        if cell >= 0:
            queue[cells[cell, 1]] = np.int64(patches[sample]) << 32 | sample
            cells[cell, 1] += 1
    filled = np.zeros(split, np.int32)
    lower = np.arange(split).astype(np.int32)
    for length in range(1, split):
        for k in range(CLASSES):
            cell = length * CLASSES + k
            shuffle(state, queue, cells[cell, 0], cells[cell, 1])
            if cells[cell, 0] < cells[cell, 1]:
                filled[length] |= 1 << k
        if not filled[length]:
            lower[length] = length - 1
    return Pool(queue, cells, filled, lower)


def left_in(pool: Pool) -> NDArray[np.int64]:
    """The samples that are still in the pool."""
    size = np.diff(pool.cells, axis=1).ravel()
    cell_first = np.cumsum(size) - size
    return pool.queue[np.arange(size.sum()) + np.repeat(pool.cells[:, 0] - cell_first, size)] & 0xFFFFFFFF


@numba.njit(cache=True, nogil=True)
def fill_up(
    pool: Pool,
    held: NDArray[np.int64],
    bounds: tuple[int, int, int],
    patch_cost: int,
    mean: int,
    state: NDArray[np.uint64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Fill the room of packs from the pool until they are full or nothing fits.

    Args:
        pool: loses what is put into packs.
        held: tokens, patches and attention cost of each pack, [M, 3].
        bounds: of the three.
        patch_cost: cost of a patch, in units of attention cost.
        mean: what a pack should cost.
        state: of the stream of random numbers.

    Returns:
        added, start [M + 1]: pack m has got the samples added[start[m]:start[m + 1]].
    """
    queue, cells, filled, lower = pool
    most_tokens, most_patches, most_attention = bounds
    drawn = np.zeros(QUANTILES, np.int32)
    count = len(held)
    added, start, place = np.empty(len(queue), np.int32), np.zeros(count + 1, np.int64), 0
    too_dear = 0  # cost above the mean so far, which the packs to come make up for
    typical, weighted = 0, 0
    patches_left = held[:, 1].sum()
    for entry in queue:
        patches_left += entry >> 32
    for pack in range(count):
        if pack % max(count // SURVEYS, 1) == 0:
            typical, weighted = _survey(cells, drawn)
        target = mean - too_dear // (count - pack)
        share = patches_left // (count - pack)
        least_patches = share - SAVED * (most_patches - share)  # or those to come would have too many
        tokens, patches, attention = held[pack, 0], held[pack, 1], held[pack, 2]
        while tokens < most_tokens:
            room = most_tokens - tokens
            limit = room  # no longer one is taken: so the attention cost of a filled room fits
            if most_attention - attention < room * room:
                limit = (most_attention - attention) // room
            wanted = (target - attention - room * weighted) // patch_cost
            wanted = min(max(wanted, least_patches), most_patches) - patches
            wanted_class = int(wanted * (CLASSES / PATCHES_A_TOKEN) / room)
            length, entry = 0, -1
            for attempt in range(ATTEMPTS):
                length = _next_length(filled, lower, drawn, room, limit, typical, attempt == 0, state)
                if length:
                    entry = _take(queue, cells, filled, lower, length, wanted_class, most_patches - patches)
                if not length or entry >= 0:
                    break
            if entry < 0:
                break
            added[place] = entry & 0xFFFFFFFF
            place += 1
            tokens += length
            patches += entry >> 32
            attention += length * length
        held[pack, 0], held[pack, 1], held[pack, 2] = tokens, patches, attention
        start[pack + 1] = place
        patches_left -= patches
        too_dear += attention + patch_cost * patches - mean
    return added, start


@numba.njit(cache=True, nogil=True)
def _survey(cells: Array, drawn: Array) -> tuple[int, int]:
    """Have lengths drawn as often as they are now left. Returns their mean, and the mean that counts each token."""
    left = np.zeros(len(cells) // CLASSES, np.int64)
    number, tokens, attention = 0, 0, 0
    for length in range(1, len(left)):
        for cell in range(length * CLASSES, (length + 1) * CLASSES):
            left[length] += cells[cell, 1] - cells[cell, 0]
        number += left[length]
        tokens += left[length] * length
        attention += left[length] * length * length
    length, until = 0, 0
    for quantile in range(QUANTILES):
        while until * QUANTILES <= quantile * number and length + 1 < len(left):
            length += 1
            until += left[length]
        drawn[quantile] = length
    return tokens // max(number, 1), attention // max(tokens, 1)


@numba.njit(cache=True, nogil=True)
def _at_most(lower: Array, length: int) -> int:
    """The longest length up to `length` of which a sample is left, or 0."""
    length = max(min(length, len(lower) - 1), 0)
    while lower[length] != length:
        lower[length] = lower[lower[length]]
        length = lower[length]
    return length


@numba.njit(cache=True, nogil=True)
def _next_length(
    filled: Array, lower: Array, drawn: Array, room: int, limit: int, typical: int, at_once: bool, state: Array
) -> int:
    """A length up to `limit` to put into `room`, drawn so that the room can be filled to the token; 0: none is left.

    One length that fills all of the room is taken only `at_once`.
    """
    if room > 3 * typical:
        length = _at_most(lower, min(drawn[below(state, QUANTILES)], limit, room - typical))
        return length if length else _at_most(lower, limit)
    whole = at_once and room <= limit and room < len(filled) and filled[room]
    if whole and room <= typical:
        return room
    for _ in range(TRIES):
        length = _at_most(lower, min(drawn[below(state, QUANTILES)], limit, room - 1))
        rest = room - length
        if length and rest <= limit and rest < len(filled) and filled[rest]:
            return length
    if whole:
        return room
    best, most = 0, 0
    length = _at_most(lower, limit)
    for _ in range(NEAR):
        both = length + _at_most(lower, min(room - length, limit))
        if length and both > most:
            best, most = length, both
        if not length or most == room:
            break
        length = _at_most(lower, length - 1)
    return best


@numba.njit(cache=True, nogil=True)
def _take(
    queue: Array, cells: Array, filled: Array, lower: Array, length: int, wanted: int, most_patches: int
) -> int:
    """Take the entry of this length whose class is nearest to `wanted`, of `most_patches` at most; -1: none."""
    wanted = min(max(wanted, 0), CLASSES - 1)
    for distance in range(CLASSES):
        for side in (-1, 1):
            k = wanted + side * distance
            if 0 <= k < CLASSES and filled[length] >> k & 1:
                cell = length * CLASSES + k
                entry = queue[cells[cell, 1] - 1]
                if entry >> 32 <= most_patches:
                    cells[cell, 1] -= 1
                    if cells[cell, 1] == cells[cell, 0]:
                        filled[length] ^= 1 << k
                        if not filled[length]:
                            lower[length] = length - 1
                    return entry
    return -1
