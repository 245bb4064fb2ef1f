"""How rows are dealt to parts, and the random numbers of compiled code."""

from __future__ import annotations

import numpy as np
import pytest

from onevision.packing.draws import below, shuffle, stream
from onevision.packing.parts import Parts


@pytest.mark.parametrize(("rows", "part_samples"), [(1, 10), (60, 20), (1000, 1000), (100_001, 9_000), (7_000, 64)])
def test_every_row_is_in_one_part(rows: int, part_samples: int) -> None:
    parts = Parts(rows, part_samples, seed=3)
    column = np.arange(rows) * 7
    found = [parts.rows_of(part) for part in range(parts.count)]
    assert parts.count == -(-rows // part_samples)
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(rows))
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 2 * parts.tile
    for part, own in enumerate(found):
        assert np.array_equal(parts.read(column, part), own * 7)


def test_every_part_is_a_mixture_of_the_whole_corpus() -> None:
    """Each part holds its share of any range of rows, to a few tiles."""
    parts = Parts(1_000_000, 100_000, seed=0)
    for part in range(parts.count):
        counts, _ = np.histogram(parts.rows_of(part), np.linspace(0, 1_000_000, 9))
        assert np.abs(counts - 12_500).max() <= 2 * parts.tile


def test_the_seed_decides_which_rows_share_a_part() -> None:
    one, same, other = (Parts(50_000, 10_000, seed).rows_of(2) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_random_numbers_are_those_of_splitmix64() -> None:
    state = np.zeros(1, np.uint64)  # the published first outputs for seed 0, their upper halves
    assert [below(state, 2**32) for _ in range(3)] == [0xE220A839, 0x6E789E6A, 0x06C45D18]
    assert stream("a", 1)[0] != stream("a", 2)[0]


def test_a_shuffle_is_uniform() -> None:
    """24 orders of four values in 24,000 shuffles: chi-squared below its 99.9 % quantile at 23 degrees of freedom."""
    state = stream("test")
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(24_000):
        values = np.arange(6)
        shuffle(state, values, 1, 5)
        assert values[0] == 0 and values[5] == 5
        counts[tuple(values)] = counts.get(tuple(values), 0) + 1
    assert len(counts) == 24
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 49.7
