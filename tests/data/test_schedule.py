"""How the packs of a step are dealt to ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.data.schedule import EVEN, deal
from onevision.errors import InputError


@given(st.integers(1, 8), st.integers(0, 12), st.integers(0, 2**32))
@settings(max_examples=100)
def test_deal_gives_every_pack_once_in_equal_counts(ranks: int, share: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 50, ranks * share)
    hands = deal(costs, ranks)
    assert [len(hand) for hand in hands] == [share] * ranks
    assert sorted(np.concatenate(hands).tolist()) == list(range(len(costs)))
    for hand in hands:
        assert np.all(np.diff(costs[hand]) <= 0)


def spread(costs: np.ndarray, hands: list[np.ndarray]) -> float:
    """Dearest less cheapest rank, of the mean."""
    loads = np.array([costs[hand].sum() for hand in hands])
    return float(np.ptp(loads) / loads.mean())


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 2**32))
@settings(max_examples=60)
def test_no_exchange_of_two_packs_would_even_the_dearest_or_the_cheapest_rank_out(
    ranks: int, share: int, seed: int
) -> None:
    costs = np.random.default_rng(seed).lognormal(10, 1, ranks * share).astype(np.int64)
    hands = deal(costs, ranks)
    loads = np.array([costs[hand].sum() for hand in hands])
    if np.ptp(loads) <= EVEN * loads.mean():
        return
    for rank in (int(loads.argmax()), int(loads.argmin())):
        for other in range(ranks):
            gap = abs(loads[rank] - loads[other])
            for own in costs[hands[rank]]:
                for its in costs[hands[other]]:
                    moved = (own - its) * (1 if loads[rank] >= loads[other] else -1)
                    assert not 0 < moved < gap, "this exchange was left out"


def test_ranks_of_a_step_cost_alike() -> None:
    """16 ranks with eight packs each, whose costs vary by a quarter, as those of packs bound by tokens alone do."""
    random = np.random.default_rng(0)
    dealt, at_random = [], []
    for _ in range(50):
        costs = (random.normal(1, 0.25, 128).clip(0.3) * 1e8).astype(np.int64)
        dealt.append(spread(costs, deal(costs, 16)))
        at_random.append(spread(costs, list(random.permutation(128).reshape(16, 8))))
    assert max(dealt) < 0.02 < min(at_random)


def test_deal_refuses_what_does_not_divide() -> None:
    with pytest.raises(InputError, match="6 packs a step cannot be dealt evenly to 4 ranks"):
        deal(np.ones(6), 4)
