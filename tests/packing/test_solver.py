"""The solver: every sample once, no pack too full, close to the least number of packs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.packing.draws import stream
from onevision.packing.patterns import _fullest, find_patterns
from onevision.packing.solver import solve


def loads(lengths: np.ndarray, pack_start: np.ndarray, sample: np.ndarray) -> np.ndarray:
    return np.add.reduceat(lengths[sample], pack_start[:-1])


def check(lengths: np.ndarray, capacity: int, seed: int) -> int:
    """Check a solution and return its number of packs."""
    pack_start, sample = solve(lengths, capacity, stream(seed))
    assert (pack_start.dtype, sample.dtype) == (np.int64, np.int32)
    assert pack_start[0] == 0 and pack_start[-1] == len(sample) == len(lengths)
    assert np.diff(pack_start).min() >= 1
    assert np.array_equal(np.sort(sample), np.arange(len(lengths)))
    assert loads(lengths, pack_start, sample).max() <= capacity
    return len(pack_start) - 1


problems = st.integers(1, 200).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(1, capacity), min_size=1, max_size=300).map(np.array),
        st.just(capacity),
        st.integers(-(2**63), 2**64),
    )
)


@given(problems)
@settings(max_examples=200)
def test_every_sample_once_and_no_pack_over_capacity(problem: tuple[np.ndarray, int, int]) -> None:
    lengths, capacity, seed = problem
    packs = check(lengths, capacity, seed)
    # A best fit leaves no two packs that would fit into one.
    assert packs <= max(1, 2 * lengths.sum() / capacity)
    again = solve(lengths, capacity, stream(seed))
    for first, second in zip(solve(lengths, capacity, stream(seed)), again, strict=True):
        assert np.array_equal(first, second)


@given(st.dictionaries(st.integers(1, 200), st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 200))
@settings(max_examples=200)
def test_the_fullest_pattern_is_the_best_subset_sum(counts: dict[int, int], room: int) -> None:
    left = np.array([counts.get(length, 0) for length in range(201)])
    lower = np.array([0, *(length if left[length] else length - 1 for length in range(1, 201))])
    chosen = np.zeros(201, np.int64)
    size = _fullest(left, lower, room, chosen)
    lengths, taken = np.unique(chosen[1:size], return_counts=True)
    assert all(count <= counts[length] for length, count in zip(lengths.tolist(), taken.tolist(), strict=True))
    assert all(left[length] == count - (chosen[1:size] == length).sum() for length, count in counts.items())
    reachable = {0}
    for length, count in counts.items():
        reachable = {total + k * length for total in reachable for k in range(count + 1)}
    assert chosen[1:size].sum() == max(total for total in reachable if total <= room)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=80))
@settings(max_examples=200)
def test_patterns_use_up_the_histogram(counts: list[int]) -> None:
    histogram = np.array([0, *counts])
    patterns = find_patterns(histogram)
    used = np.zeros_like(histogram)
    sizes = np.diff(patterns.start)
    np.add.at(used, patterns.length, patterns.copies * np.repeat(patterns.repeats, sizes))
    assert np.array_equal(used, histogram)
    if counts[:-1] != [0] * len(counts[:-1]) or counts[-1]:
        assert np.add.reduceat(patterns.length * patterns.copies, patterns.start[:-1]).max() < len(histogram)


def llava_like(samples: int, seed: int = 0) -> np.ndarray:
    """The published histogram: 75 % below 1,024 tokens, 20 % below 2,048, the rest to 8,187."""
    rng = np.random.default_rng(seed)
    short = rng.lognormal(5.9, 0.5, samples).clip(36, 1023)
    middle = rng.integers(1024, 2048, samples)
    long = (2048 + rng.exponential(900, samples)).clip(2048, 8187)
    kind = rng.random(samples)
    return np.where(kind < 0.7475, short, np.where(kind < 0.944, middle, long)).astype(np.int32)


BENIGN = {
    "llava": (llava_like(200_000), 8192, 0.9999),
    "demo uniform": (np.random.default_rng(1).integers(20, 201, 6000).astype(np.int32), 1024, 0.99),
    "demo bell": (np.random.default_rng(2).normal(100, 12, 6000).clip(60, 200).astype(np.int32), 1024, 0.99),
    "demo narrow": (np.random.default_rng(3).integers(90, 111, 6000).astype(np.int32), 1024, 0.99),
    "demo few lengths": (np.repeat([*range(41, 48), 67, 72, 95, 113, 158], 500).astype(np.int32), 1024, 0.99),
}


@pytest.mark.parametrize("name", BENIGN)
def test_benign_histograms_come_close_to_the_lower_bound(name: str) -> None:
    lengths, capacity, fill = BENIGN[name]
    packs = check(lengths, capacity, seed=7)
    bound = -(-int(lengths.sum()) // capacity)
    assert packs <= bound * 1.0002 + 2
    assert lengths.sum() / (packs * capacity) >= fill


@pytest.mark.parametrize("samples", [1, 20, 400])
def test_a_small_corpus_wastes_less_than_one_pack(samples: int) -> None:
    lengths = np.random.default_rng(samples).integers(20, 201, samples).astype(np.int32)
    assert check(lengths, 1024, seed=0) == -(-int(lengths.sum()) // 1024)


def test_seed_decides_who_shares_a_pack_and_the_order_of_packs_but_not_their_number() -> None:
    lengths = llava_like(3000)
    one, other = solve(lengths, 8192, stream(1)), solve(lengths, 8192, stream(2))
    assert len(one[0]) == len(other[0])
    assert not np.array_equal(one[1], other[1])
    assert sorted(loads(lengths, *one)) == sorted(loads(lengths, *other))
    # Samples of one length do not share a pack because they are neighbours in the corpus.
    neighbours = np.diff(solve(np.full(1000, 100, np.int32), 1000, stream(1))[1]) == 1
    assert neighbours.mean() < 0.05
    # Packs are not ordered from long samples to short ones.
    pack_start, sample = one
    longest = np.maximum.reduceat(lengths[sample], pack_start[:-1])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2


@pytest.mark.parametrize("lengths", [[5, 11], [0, 3], [-1]])
def test_impossible_lengths_are_refused(lengths: list[int]) -> None:
    with pytest.raises(IndexError, match="a length is not within 1 to the capacity"):
        solve(np.array(lengths, np.int32), 10, stream(0))


def test_nothing_to_pack() -> None:
    pack_start, sample = solve(np.zeros(0, np.int32), 10, stream(0))
    assert pack_start.tolist() == [0] and len(sample) == 0
