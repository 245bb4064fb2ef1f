"""The endless row of packs: epochs, shares, and that any place of it is known without what comes before."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.data.mixture import ROUND, Mixture, permuted
from onevision.errors import InputError

RATES = st.lists(st.floats(1e-3, 1e3).map(lambda rate: Fraction(str(rate))), min_size=1, max_size=6)


def single(packs: int, seed: int) -> Mixture:
    return Mixture([packs], [Fraction(1)], seed)


@given(packs=st.integers(1, 60), batch=st.integers(1, 25), seed=st.integers(-5, 2**64))
@settings(max_examples=60)
def test_each_epoch_holds_every_pack_once(packs: int, batch: int, seed: int) -> None:
    row = single(packs, seed)
    steps = -(-3 * packs // batch)
    stream = np.concatenate([row.at(step * batch, batch)[1] for step in range(steps)])
    assert stream.dtype == np.int64
    for epoch in range(3):
        assert sorted(stream[epoch * packs : (epoch + 1) * packs]) == list(range(packs))


@given(rates=RATES, seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 40), min_size=6, max_size=6))
@settings(max_examples=40)
def test_shares_are_kept_all_along_and_sources_go_through_whole_epochs(
    rates: list[Fraction], seed: int, sizes: list[int]
) -> None:
    sizes = sizes[: len(rates)]
    row = Mixture(sizes, rates, seed)
    assert sum(row.shares) == 1
    count = 1000
    source, pack = row.at(0, count)
    places = np.arange(1, count + 1)
    for number, (share, packs) in enumerate(zip(row.shares, sizes, strict=True)):
        had = np.cumsum(source == number)
        assert np.abs(had - places * float(share)).max() <= float(share) * (ROUND + 2 * len(rates)) + 1
        own = pack[source == number]
        for start in range(0, len(own) - packs + 1, packs):
            assert sorted(own[start : start + packs]) == list(range(packs))
        assert row.epochs(count)[number] == had[-1] / packs
    for first, length in ((0, 1), (ROUND - 3, 7), (517, 300), (999, 1)):
        there = row.at(first, length)
        assert np.array_equal(there[0], source[first : first + length])
        assert np.array_equal(there[1], pack[first : first + length])


def test_a_place_far_away_is_found_at_once() -> None:
    row = Mixture([10_000_000, 30, 7], [Fraction(1, 3), Fraction(1, 7), Fraction(11, 21)], 3)
    first = 10**12
    source, pack = row.at(first, 4096)
    one_by_one = [row.at(first + k, 1) for k in (0, 1, 130, 4095)]
    for k, (s, p) in zip((0, 1, 130, 4095), one_by_one, strict=True):
        assert (source[k], pack[k]) == (s[0], p[0])
    counts = np.array([np.sum(source == number) for number in range(3)])
    assert np.abs(counts - 4096 * np.array([1 / 3, 1 / 7, 11 / 21])).max() < ROUND


def test_sources_of_one_size_have_orders_of_their_own() -> None:
    source, pack = Mixture([500, 500], [Fraction(1), Fraction(1)], 0).at(0, 1000)
    assert not np.array_equal(pack[source == 0][:400], pack[source == 1][:400])


def test_epochs_and_seeds_have_their_own_order_and_the_batch_size_changes_none() -> None:
    row = single(1000, 3)
    first, second = row.at(0, 1000)[1], row.at(1000, 1000)[1]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, single(1000, 4).at(0, 1000)[1])
    assert not np.array_equal(first, np.arange(1000))
    assert np.array_equal(first, np.concatenate([row.at(step * 8, 8)[1] for step in range(125)]))


def test_the_order_stays_what_it_was() -> None:
    """A run that is resumed with a later version must read on where it was."""
    assert single(10**7, 1234).at(5, 4)[1].tolist() == [8574479, 2773641, 8131846, 6923939]
    assert single(10, 1234).at(0, 10)[1].tolist() == [4, 1, 6, 8, 5, 3, 7, 2, 9, 0]
    source, pack = Mixture([10, 4], [Fraction(2), Fraction(1)], 1234).at(0, 12)
    assert source.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0]
    assert pack.tolist() == [4, 1, 6, 1, 3, 8, 5, 0, 3, 7, 2, 2]


@pytest.mark.parametrize("size", [1, 2, 5, 4096, 4097, 16_384, 16_385, 70_000])
def test_a_permutation_holds_every_number_once(size: int) -> None:
    for seed in range(5):
        values = permuted(np.arange(size), size, np.array([seed, 0], np.uint64))
        assert sorted(values.tolist()) == list(range(size))


def test_an_order_of_many_numbers_shows_no_pattern() -> None:
    size = 200_003
    values = permuted(np.arange(size), size, np.array([11, 5], np.uint64)).astype(float)
    bound = 5 / np.sqrt(size)  # five standard deviations of a correlation
    for lag in (1, 2, 7, 64, 1000):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < bound, lag
    assert abs(np.corrcoef(values, np.arange(size))[0, 1]) < bound
    step = np.histogram(np.diff(values) % size, 100, (0, size))[0]  # uniform if neighbours are independent
    assert ((step - size / 100) ** 2 / (size / 100)).sum() < 160, "99 degrees of freedom, 1 in 10,000"


@pytest.mark.parametrize("packs", [[], [3, 0]])
def test_no_packs(packs: list[int]) -> None:
    with pytest.raises(InputError, match="no packs"):
        Mixture(packs, [Fraction(1)] * len(packs), 0)
