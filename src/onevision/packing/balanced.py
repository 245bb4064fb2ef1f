"""Which samples share a pack when tokens, image patches and attention cost are bounded, so that packs cost alike.

The long samples, which hold half of the tokens, are dealt out first: from the dearest on, each goes to the pack that
costs least so far. Then pack after pack is filled up with short samples, drawn at random; the last ones are chosen so
that the pack is full to the token, and of the samples of one length those with as many patches as bring the pack's cost
(attention cost + `PATCH_COST` a patch) to the mean. What is left at the end goes where it fits best.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.data.schedule import PATCH_COST
from onevision.packing.draws import shuffle
from onevision.packing.filling import PATCHES_A_TOKEN, fill_up, left_in, make_pool

STEPS = 1 << 16  # of the price by which long samples are sorted
PACK_BITS = 24  # of a number that holds a pack and its cost
NEAR = 256  # packs that are looked through for a sample that is left

Array = NDArray[Any]


class Bounds(NamedTuple):
    """What a pack may hold at most; the last two may be larger than can be reached."""

    tokens: int
    patches: int
    attention_cost: int  # sum of squared sample lengths


def solve_bounded(
    lengths: NDArray[np.int32], patches: NDArray[np.int32], bounds: Bounds, state: NDArray[np.uint64]
) -> tuple[Array, Array]:
    """Distribute all samples over packs that keep all `bounds`, each sample once, and that cost alike.

    Args:
        lengths: tokens a sample, [N], at least 1.
        patches: image patches a sample, [N], at most four a token.
        bounds: each sample keeps them alone.
        state: of `draws.stream`; it moves on.

    Returns:
        pack_start int64 [M + 1] and sample int32 [N]: pack m holds sample[pack_start[m]:pack_start[m + 1]].

    Raises:
        IndexError: a sample does not keep the bounds.
    """
    if not len(lengths):
        return np.zeros(1, np.int64), np.zeros(0, np.int32)
    limits, patch_cost = (int(bounds.tokens), int(bounds.patches), int(bounds.attention_cost)), int(PATCH_COST)
    split, totals = _survey(lengths, patches, limits)
    count = max(-(-total // limit) for total, limit in zip(totals, limits, strict=True))
    held = np.zeros((count, 3), np.int64)
    head = np.full(count, -1, np.int32)
    link = np.full(len(lengths), -1, np.int32)
    rest = _deal_long(lengths, patches, split, limits, patch_cost, held, head, link, state)
    pool = make_pool(lengths, patches, split, state)
    mean = (totals[2] + patch_cost * totals[1]) // count
    added, start = fill_up(pool, held, limits, patch_cost, mean, state)
    rest = np.concatenate([rest, left_in(pool)])
    if len(rest):
        head = _place_rest(lengths, patches, limits, held, head, link, rest)
    return _in_random_order(head, link, added, start, state)


@numba.njit(cache=True, nogil=True)
def _survey(lengths: Array, patches: Array, limits: tuple[int, int, int]) -> tuple[int, tuple[int, int, int]]:
    """The length from which on samples are long, and all tokens, patches and attention cost."""
    histogram = np.zeros(limits[0] + 1, np.int64)
    total_tokens, total_patches, total_attention = 0, 0, 0
    for sample in range(len(lengths)):
        length, here = int(lengths[sample]), int(patches[sample])
        if length < 1 or length > limits[0] or length * length > limits[2]:
            raise IndexError("a sample is not within the bounds")
        if here < 0 or here > limits[1] or here > PATCHES_A_TOKEN * length:
            raise IndexError("a sample is not within the bounds")
        histogram[length] += 1
        total_tokens += length
        total_patches += here
        total_attention += length * length
    split, tokens = len(histogram), 0
    while split > 1 and tokens + (split - 1) * histogram[split - 1] <= total_tokens // 2:
        split -= 1
        tokens += split * histogram[split]
    return split, (total_tokens, total_patches, total_attention)


@numba.njit(cache=True, nogil=True)
def _deal_long(
    lengths: Array,
    patches: Array,
    split: int,
    limits: tuple[int, int, int],
    patch_cost: int,
    held: Array,
    head: Array,
    link: Array,
    state: Array,
) -> Array:
    """Deal the long samples to the packs; returns those that find no place.

    Room is left for short samples as they are on average, with half of their patches: those can be chosen.
    """
    order, tokens, vision, attention = _dearest_first(lengths, patches, split, patch_cost)
    longs = len(order)
    room_left, weighted = 2 * (tokens // max(len(lengths) - longs, 1)), attention // max(tokens, 1)
    half_density = vision / max(2 * tokens, 1)

    count = len(held)
    heap = np.empty(count, np.int64)  # cost << PACK_BITS | pack; the pack that costs least (to a step) is on top
    packs = np.arange(count)
    shuffle(state, packs, 0, count)
    for place in range(count):
        cost = 0
        if place < longs:  # one each
            cost = _put(order[place], packs[place], lengths, patches, patch_cost, held, head, link)
        heap[count - 1 - place] = cost << PACK_BITS | packs[place]
    rest = [0][:0]
    for sample in order[count:]:
        length, here = int(lengths[sample]), int(patches[sample])
        while count:
            pack = heap[0] & ((1 << PACK_BITS) - 1)
            room = limits[0] - held[pack, 0] - length
            fits = room >= room_left
            fits &= held[pack, 1] + here + room * half_density <= limits[1]
            fits &= held[pack, 2] + length * length + room * weighted <= limits[2]
            if fits:
                heap[0] += _put(sample, pack, lengths, patches, patch_cost, held, head, link) << PACK_BITS
            else:  # it has enough long samples
                count -= 1
                heap[0] = heap[count]
            _sift(heap, count)
            if fits:
                break
        if not count:
            rest.append(sample)
    return np.array(rest)


@numba.njit(cache=True, nogil=True)
def _put(
    sample: int, pack: int, lengths: Array, patches: Array, patch_cost: int, held: Array, head: Array, link: Array
) -> int:
    """Put a sample into a pack; returns its cost."""
    length, here = int(lengths[sample]), int(patches[sample])
    held[pack, 0] += length
    held[pack, 1] += here
    held[pack, 2] += length * length
    link[sample] = head[pack]
    head[pack] = sample
    return length * length + patch_cost * here


@numba.njit(cache=True, nogil=True)
def _dearest_first(lengths: Array, patches: Array, split: int, patch_cost: int) -> tuple[Array, int, int, int]:
    """The long samples by falling cost; tokens, patches and attention cost of all short ones."""
    long, price = np.empty(len(lengths), np.int32), np.empty(len(lengths), np.int64)
    longs, dearest, tokens, vision, attention = 0, 1, 0, 0, 0
    for sample in range(len(lengths)):
        length, here = int(lengths[sample]), int(patches[sample])
        is_long = int(length >= split)
        long[longs], price[longs] = sample, length * length + patch_cost * here  # the next one replaces a short one
        dearest = max(dearest, is_long * price[longs])
        longs += is_long
        tokens += (1 - is_long) * length
        vision += (1 - is_long) * here
        attention += (1 - is_long) * length * length
    first = np.zeros(STEPS + 1, np.int64)
    step = np.empty(longs, np.int32)
    for place in range(longs):
        step[place] = int((STEPS - 1) * ((dearest - price[place]) / dearest))
        first[step[place] + 1] += 1
    for place in range(STEPS):
        first[place + 1] += first[place]
    ordered = np.empty(longs, np.int32)
    for place in range(longs):
        ordered[first[step[place]]] = long[place]
        first[step[place]] += 1
    return ordered, tokens, vision, attention


@numba.njit(cache=True, nogil=True)
def _sift(heap: Array, size: int) -> None:
    """Bring the top of the heap to its place."""
    top, place = heap[0], 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= top:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = top


@numba.njit(cache=True, nogil=True)
def _place_rest(
    lengths: Array, patches: Array, limits: tuple[int, int, int], held: Array, head: Array, link: Array, rest: Array
) -> Array:
    """Put each sample of `rest`, the longest first, where it leaves least room; returns `head` with the new packs."""
    count = len(held)
    held = np.concatenate((held, np.zeros((len(rest), 3), np.int64)))
    head = np.concatenate((head, np.full(len(rest), -1, np.int32)))
    order = rest[np.argsort(-lengths[rest], kind="mergesort")]
    shortest = lengths[order[-1]]
    near = np.empty(NEAR, np.int64)  # packs that are looked at: those with most room, and new ones
    open_packs = np.flatnonzero(limits[0] - held[:count, 0] >= shortest)
    most_room = open_packs[np.argsort(held[open_packs, 0], kind="mergesort")[:NEAR]]
    size = len(most_room)
    near[:size] = most_room
    for sample in order:
        length, here = int(lengths[sample]), int(patches[sample])
        best, least = -1, limits[0] + 1
        for place in range(size):
            pack = near[place]
            room = limits[0] - held[pack, 0] - length
            fits = held[pack, 1] + here <= limits[1] and held[pack, 2] + length * length <= limits[2]
            if fits and 0 <= room < least:
                best, least = place, room
        if best < 0:  # a new pack, in the place of the first one where there are too many
            best = size if size < NEAR else 0
            size = max(size, best + 1)
            near[best] = count
            count += 1
        pack = near[best]
        _put(sample, pack, lengths, patches, 0, held, head, link)
        if limits[0] - held[pack, 0] < shortest:
            size -= 1
            near[best] = near[size]
    return head[:count]


@numba.njit(cache=True, nogil=True)
def _in_random_order(head: Array, link: Array, added: Array, start: Array, state: Array) -> tuple[Array, Array]:
    """All packs that are not empty: pack m has the samples of its list, and of added[start[m]:start[m + 1]]."""
    dealt = len(start) - 1  # the packs that came later have only lists
    order = np.empty(len(head), np.int64)
    count = 0
    for pack in range(len(head)):
        if head[pack] >= 0 or (pack < dealt and start[pack] < start[pack + 1]):
            order[count] = pack
            count += 1
    shuffle(state, order, 0, count)
    pack_start = np.zeros(count + 1, np.int64)
    samples = np.empty(len(link), np.int32)
    place = 0
    for number in range(count):
        pack = order[number]
        sample = head[pack]
        while sample >= 0:
            samples[place] = sample
            sample = link[sample]
            place += 1
        if pack < dealt:
            for other in range(start[pack], start[pack + 1]):
                samples[place] = added[other]
                place += 1
        pack_start[number + 1] = place
    return pack_start, samples
