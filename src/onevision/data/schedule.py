"""Which packs a step reads, and which rank gets which of them: pure functions, so no state needs saving."""

from __future__ import annotations

import heapq
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onevision.errors import InputError


def pack_ids(step: int, packs: int, global_batch_size: int, seed: int) -> NDArray[np.int64]:
    """Packs of one step, int64 [global_batch_size].

    Steps read on through an endless row of epochs; each epoch holds every pack once, in an order of its own.
    A step may reach over the end of an epoch.

    Raises:
        InputError: there are no packs.
    """
    if packs < 1:
        raise InputError("there are no packs to read")
    position = step * global_batch_size + np.arange(global_batch_size, dtype=np.int64)
    epoch, place = np.divmod(position, packs)
    ids = np.empty(global_batch_size, np.int64)
    for number in np.unique(epoch).tolist():
        here = epoch == number
        ids[here] = _epoch_order(packs, seed, number)[place[here]]
    return ids


@lru_cache(maxsize=2)  # a step lies in one epoch, or reaches into the next
def _epoch_order(packs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(packs)


def deal(costs: NDArray[np.number], ranks: int) -> list[NDArray[np.int64]]:
    """Deal the packs of a step to ranks: equal counts, cost as even as it goes.

    Longest processing time first (Graham 1969): from the dearest pack on, each goes to the rank that has the
    least cost so far and is not full. A rank's packs come dearest first, so that the micro-batches that ranks
    work on at one time are alike.

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
    hands: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    values = costs.tolist()
    for index in np.argsort(-costs, kind="stable").tolist():
        load, rank = heapq.heappop(heap)
        hands[rank].append(index)
        if len(hands[rank]) < share:
            heapq.heappush(heap, (load + values[index], rank))
    return [np.array(hand, np.int64) for hand in hands]
