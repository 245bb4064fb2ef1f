"""Which rank reads which packs of a step, so that ranks have alike to do, and how far ahead. No torch."""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray

from onevision.errors import InputError
from onevision.recipe import DataRecipe

# What a patch costs, in units of a squared sample length; it decides how packs are made and dealt to ranks, no result.
# Forward FLOPs of the 8B preset: a patch passes the vision tower and a quarter of the adapter,
# 2 * (303e6 + 34e6 / 4) = 623e6; a squared length costs 2 * 4096 in each of 36 layers (causal: half of
# 4 * 4096), 295e3.
PATCH_COST = 2_000
EVEN = 1e-3  # spread of the ranks' costs, of their mean, below which packs are not exchanged any more
EXCHANGES = 8  # a rank, at most


def batches_ahead(data: DataRecipe, micro_batch_size: int) -> int:
    """Micro-batches that a rank makes ahead of the one that it computes."""
    return math.ceil(data.prefetch_packs / micro_batch_size) if data.workers else 0


def deal(costs: NDArray[np.number], ranks: int) -> list[NDArray[np.int64]]:
    """Deal the packs of a step to ranks: equal counts, cost as even as it goes.

    Longest processing time first (Graham 1969): from the dearest pack on, each goes to the rank that has the
    least cost so far and is not full. Then the dearest or the cheapest rank exchanges a pack with another one,
    the one that evens the two out best, as long as that helps. A rank's packs come dearest first, so that the
    micro-batches that ranks work on at one time are alike.

    Args:
        costs: [B], any unit.
        ranks: divides B.

    Returns:
        For each rank the indices into `costs`, int64 [B / ranks].

    Raises:
        InputError: `ranks` does not divide the number of packs.
    """
    share, rest = divmod(len(costs), ranks)
    if rest:
        raise InputError(f"{len(costs)} packs a step cannot be dealt evenly to {ranks} ranks")
    hands = np.array(_longest_first(costs, ranks, share), np.int64).reshape(ranks, share)
    if share > 1:
        for _ in range(EXCHANGES * ranks):
            if not _exchange(costs, hands):
                break
    order = np.argsort(-costs[hands], axis=1, kind="stable")
    return list(np.take_along_axis(hands, order, axis=1))


def _longest_first(costs: NDArray[np.number], ranks: int, share: int) -> list[list[int]]:
    hands: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    values = costs.tolist()
    for index in np.argsort(-costs, kind="stable").tolist():
        load, rank = heapq.heappop(heap)
        hands[rank].append(index)
        if len(hands[rank]) < share:
            heapq.heappush(heap, (load + values[index], rank))
    return hands


def _exchange(costs: NDArray[np.number], hands: NDArray[np.int64]) -> bool:
    """Exchange two packs so that the dearest rank becomes cheaper, or else the cheapest dearer; false if it is done.

    An exchange that moves d of a gap g between two ranks leaves |g - 2d| between them: it helps where 0 < d < g.
    """
    held = costs[hands]  # [ranks, share]
    loads = held.sum(1)
    if np.ptp(loads) <= EVEN * loads.mean():
        return False
    for rank, sign in ((int(loads.argmax()), 1), (int(loads.argmin()), -1)):
        gap = sign * (loads[rank] - loads)[None, :, None]  # to each other rank
        moved = sign * (held[rank][:, None, None] - held[None])  # [own pack, other rank, its pack]
        gain = np.where((moved > 0) & (moved < gap), np.minimum(moved, gap - moved), 0)
        best = int(gain.argmax())
        own, other, its = np.unravel_index(best, gain.shape)
        if gain[own, other, its] > 0:
            hands[rank, own], hands[other, its] = hands[other, its], hands[rank, own]
            return True
    return False
