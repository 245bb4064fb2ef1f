"""How alike the data-parallel ranks cost in a step: measured on packs, by the dealing that the loader uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onevision.data.schedule import PATCH_COST, deal
from onevision.packing.index import PackIndex

RANKS = (8, 16, 32, 128)
STEPS = 8  # that are drawn for a global batch size


@dataclass(frozen=True)
class Dealing:
    """Cost of the ranks in a step, averaged over `steps` drawn ones. A spread is the cost of the dearest rank less that
    of the cheapest, as a share of the mean; `waiting` is how much less than the dearest an average rank costs, as a
    share of the dearest.
    """

    global_batch_size: int
    ranks: int
    steps: int
    spread: float
    waiting: float
    random_spread: float
    random_waiting: float


def pack_costs(index: PackIndex, packs: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the loader takes for the cost of packs (an array of numbers of any shape), in squared tokens."""
    patches = index.patches[packs].astype(np.int64)
    costs: NDArray[np.int64] = index.attention_cost[packs] + PATCH_COST * patches
    return costs


def measure_dealings(
    index: PackIndex, batch_sizes: Iterable[int], ranks: Iterable[int] = RANKS, seed: int = 0
) -> list[Dealing]:
    """The spread for each global batch size that the packs fill and each number of ranks that divides it.

    The steps are drawn: no pack is in two of them.
    """
    found = []
    for batch in sorted(set(batch_sizes)):
        steps = min(STEPS, index.packs // batch)
        if not steps:
            continue
        random = np.random.default_rng([seed, batch])
        drawn = random.choice(index.packs, (steps, batch), replace=False)
        costs = pack_costs(index, drawn)
        for count in (count for count in ranks if batch % count == 0):
            dealt = [_rank_costs(step, deal(step, count)) for step in costs]
            at_random = list(costs.reshape(steps, count, -1).sum(2))
            found.append(Dealing(batch, count, steps, *_spread(dealt), *_spread(at_random)))
    return found


def _rank_costs(costs: NDArray[np.int64], hands: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.array([costs[hand].sum() for hand in hands])


def _spread(steps: list[NDArray[np.int64]]) -> tuple[float, float]:
    """Spread and waiting of the ranks' costs in each step, averaged."""
    spread = [np.ptp(loads) / loads.mean() for loads in steps]
    waiting = [1 - loads.mean() / loads.max() for loads in steps]
    return float(np.mean(spread)), float(np.mean(waiting))
