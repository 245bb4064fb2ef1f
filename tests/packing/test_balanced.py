"""The solver with bounds: every sample once, every bound kept by every pack, full packs that cost alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing.synthetic import draw
from onevision.data.schedule import PATCH_COST
from onevision.packing.balanced import Bounds, solve_bounded
from onevision.packing.draws import stream
from onevision.packing.solver import solve

Arrays = tuple[np.ndarray, np.ndarray]


def sums(values: np.ndarray, solution: Arrays) -> np.ndarray:
    return np.add.reduceat(values[solution[1]].astype(np.int64), solution[0][:-1])


def check(lengths: np.ndarray, patches: np.ndarray, bounds: Bounds, seed: int) -> Arrays:
    pack_start, sample = solution = solve_bounded(lengths, patches, bounds, stream(seed))
    assert pack_start[0] == 0 and pack_start[-1] == len(lengths)
    assert np.diff(pack_start).min() >= 1
    assert np.array_equal(np.sort(sample), np.arange(len(lengths)))
    assert sums(lengths, solution).max() <= bounds.tokens
    assert sums(patches, solution).max() <= bounds.patches
    assert sums(lengths.astype(np.int64) ** 2, solution).max() <= bounds.attention_cost
    return solution


@st.composite
def problems(draw_from: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Bounds]:
    capacity = draw_from(st.integers(1, 150))
    attention = draw_from(st.integers(1, capacity**2))
    longest = int(np.sqrt(attention))
    lengths = np.array(draw_from(st.lists(st.integers(1, longest), min_size=1, max_size=300)), np.int32)
    vision = np.array([draw_from(st.integers(0, int(length))) for length in lengths], np.int32)
    most = int(vision.max()) * 4
    patches = draw_from(st.integers(max(most, 1), max(4 * capacity, most, 1)))
    return lengths, vision * 4, Bounds(capacity, patches, attention)


@given(problems(), st.integers(0, 2**64))
@settings(max_examples=150)
def test_every_sample_once_and_every_bound_kept(problem: tuple[np.ndarray, np.ndarray, Bounds], seed: int) -> None:
    first, again = check(*problem, seed), check(*problem, seed)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("capacity", [8192, 16384, 32768])
def test_bounds_cost_almost_no_fill_and_make_packs_cost_alike(capacity: int) -> None:
    lengths, vision = draw(400_000, seed=1)
    attention = max(capacity**2 * 3 // 4, 8187**2) if capacity > 8192 else capacity**2 * 3 // 4
    kept = lengths.astype(np.int64) ** 2 <= attention
    lengths, patches = lengths[kept], vision[kept] * 4
    least = -(-int(lengths.sum()) // capacity)
    bounds = Bounds(capacity, int(patches.sum() / least * 1.15), attention)
    balanced = check(lengths, patches, bounds, seed=1)
    assert lengths.sum() / ((len(balanced[0]) - 1) * capacity) >= 0.999
    spreads = []
    for solution in (balanced, solve(lengths, capacity, stream(1))):
        cost = sums(lengths.astype(np.int64) ** 2, solution) + PATCH_COST * sums(patches, solution)
        spreads.append(cost.std() / cost.mean())
    assert spreads[0] < 0.045 and spreads[0] < spreads[1] / 3


def test_seed_decides_who_shares_a_pack() -> None:
    lengths, vision = draw(5_000, seed=2)
    bounds = Bounds(8192, 4 * 8192, 8192**2)
    one, other = check(lengths, vision * 4, bounds, 1), check(lengths, vision * 4, bounds, 2)
    assert abs(len(one[0]) - len(other[0])) <= 3
    assert not np.array_equal(one[1], other[1])


@pytest.mark.parametrize(
    ("length", "patches"), [(0, 0), (101, 0), (81, 0), (50, 201), (5, 24), (5, -4)]
)  # a sample that does not keep 100 tokens, 200 patches, 80 ** 2, or four patches a token
def test_impossible_samples_are_refused(length: int, patches: int) -> None:
    with pytest.raises(IndexError, match="a sample is not within the bounds"):
        solve_bounded(np.array([length], np.int32), np.array([patches], np.int32), Bounds(100, 200, 6400), stream(0))


def test_one_length_and_nothing() -> None:
    lengths = np.full(1000, 3000, np.int32)
    pack_start, _ = check(lengths, np.zeros(1000, np.int32), Bounds(8192, 1, 8192**2), 0)
    assert len(pack_start) - 1 == 500
    assert solve_bounded(lengths[:0], lengths[:0], Bounds(10, 40, 100), stream(0))[0].tolist() == [0]
