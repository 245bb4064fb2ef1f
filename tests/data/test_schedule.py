"""The order of packs over steps and epochs, and how a step is dealt to ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.data.schedule import deal, pack_ids
from onevision.errors import InputError


@given(packs=st.integers(1, 60), batch=st.integers(1, 25), seed=st.integers(-5, 2**64))
@settings(max_examples=100, deadline=None)
def test_each_epoch_holds_every_pack_once(packs: int, batch: int, seed: int) -> None:
    steps = -(-3 * packs // batch)
    stream = np.concatenate([pack_ids(step, packs, batch, seed) for step in range(steps)])
    assert stream.dtype == np.int64
    for epoch in range(3):
        assert sorted(stream[epoch * packs : (epoch + 1) * packs]) == list(range(packs))


def test_epochs_and_seeds_have_their_own_order_and_the_batch_size_changes_none() -> None:
    first, second = pack_ids(0, 1000, 1000, 3), pack_ids(1, 1000, 1000, 3)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, pack_ids(0, 1000, 1000, 4))
    assert not np.array_equal(first, np.arange(1000))
    assert np.array_equal(first, np.concatenate([pack_ids(step, 1000, 8, 3) for step in range(125)]))


def test_the_order_stays_what_it_was() -> None:
    """A run that is resumed with a later version must read on where it was."""
    assert pack_ids(0, 10, 10, 1234).tolist() == [4, 1, 6, 8, 5, 3, 7, 2, 9, 0]


def test_a_step_may_hold_more_than_an_epoch() -> None:
    ids = pack_ids(0, 3, 8, 0)
    assert sorted(ids[:3]) == sorted(ids[3:6]) == [0, 1, 2]


def test_no_packs() -> None:
    with pytest.raises(InputError, match="no packs"):
        pack_ids(0, 0, 4, 0)


@given(st.integers(1, 8), st.integers(0, 12), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_deal_gives_every_pack_once_in_equal_counts(ranks: int, share: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 50, ranks * share)
    hands = deal(costs, ranks)
    assert [len(hand) for hand in hands] == [share] * ranks
    assert sorted(np.concatenate(hands).tolist()) == list(range(len(costs)))
    for hand in hands:
        assert np.all(np.diff(costs[hand]) <= 0)


def test_deal_evens_out_the_cost() -> None:
    costs = np.random.default_rng(0).lognormal(0, 0.5, 64)
    dealt = [costs[hand].sum() for hand in deal(costs, 8)]
    in_order = costs.reshape(8, 8).sum(1)
    assert max(dealt) / np.mean(dealt) < 1.02 < in_order.max() / in_order.mean()


def test_deal_refuses_what_does_not_divide() -> None:
    with pytest.raises(InputError, match="6 packs a step cannot be dealt evenly to 4 ranks"):
        deal(np.ones(6), 4)
