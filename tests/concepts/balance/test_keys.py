"""Keys and draws: uniform, exact, in proportion to weights, and the same for any order and number of parts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onevision.concepts.balance import keys
from onevision.concepts.balance.draw import Bounds, Piece, available, lowest
from onevision.concepts.balance.keys import NEVER, salt, sample_keys
from onevision.ranks import ALONE
from tests.concepts.balance.common import Thread, as_threads

EXTREME = np.array([1e-9, 1e9, 0, 1, 1e-30, 1e30], np.float32)


def ids_of(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def test_the_logarithm_is_that_of_libm_to_a_few_units_in_the_last_place() -> None:
    random = np.random.default_rng(0)
    values = [2.0**-53, 1 - 2.0**-53, 0.5, 0.7071067811865476, 0.7071067811865475, *random.random(20_000).tolist()]
    for u in values:
        ours, theirs = keys._minus_log(u), -math.log(u)
        assert ours > 0 and abs(ours - theirs) <= 4 * math.ulp(theirs), u


def test_keys_are_these_bits() -> None:
    """Another machine or version that gave other keys would draw other samples."""
    weight = np.array([1, 0.5, 0, 1], np.float32)
    found = sample_keys(np.arange(4, dtype=np.uint64), weight, np.ones(4, bool), salt("balance", 7))
    assert found.tolist() == [0x40157C472A194410, 0x3FD4ABDD641FC1B8, 0xBF716DA023B168A3, 0x3FF751422E092C12]


def test_u_is_never_0_or_1_and_uniform() -> None:
    for mixed, u in ((0, 2.0**-53), (2**64 - 1, 1 - 2.0**-53)):
        assert (float(mixed >> 12) + 0.5) * 2.0**-52 == u  # what _uniform makes of the lowest and the highest hash
    found = sample_keys(ids_of(100_000), np.ones(100_000, np.float32), np.ones(100_000, bool), salt("balance", 1))
    u = np.sort(np.exp(-found.view(np.float64)))
    distance = np.abs(u - (np.arange(100_000) + 0.5) / 100_000).max()
    assert distance < 1.95 / math.sqrt(100_000)  # Kolmogorov-Smirnov, one in a thousand


def test_extreme_weights_have_keys_in_order_and_zero_comes_last() -> None:
    ids, taken = ids_of(6), np.array([True] * 6)
    many = [sample_keys(ids, EXTREME, taken, salt("balance", seed)) for seed in range(200)]
    for found in many:
        values = np.delete(found, 2).view(np.float64)
        assert np.isfinite(values).all() and (values > 0).all()
        assert found[2] > found[[0, 1, 3, 4, 5]].max() and found[2] != NEVER
        assert found[5] < found[1] < found[3] < found[0] < found[4]
    assert sample_keys(ids, EXTREME, ~taken, salt("balance", 0)).tolist() == [int(NEVER)] * 6


def test_keys_are_scale_free() -> None:
    ids, weight = ids_of(1000), np.random.default_rng(1).random(1000).astype(np.float32)
    plain, scaled = (
        np.argsort(sample_keys(ids, weight * np.float32(factor), np.ones(1000, bool), salt("balance", 2)))
        for factor in (1, 2.0**40)
    )
    assert plain.tolist() == scaled.tolist()


def inclusion(weights: list[float], drawn: int) -> list[float]:
    """The chance of each item in successive draws without replacement, each in proportion to the weights left."""
    chances = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), drawn):
        chance, left = 1.0, sum(weights)
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        for item in order:
            chances[item] += chance
    return chances


def pieces_of(key: NDArray[np.uint64], parts: int = 1, cell: Any = None) -> list[Piece]:
    cells = np.zeros(len(key), np.uint16) if cell is None else cell
    edges = [len(key) * k // parts for k in range(parts + 1)]
    return [Piece(k, edges[k], key[edges[k] : edges[k + 1]], cells[edges[k] : edges[k + 1]]) for k in range(parts)]


def draw(key: NDArray[np.uint64], ids: NDArray[np.uint64], wanted: list[int], parts: int = 1, cell: Any = None) -> Any:
    pieces = pieces_of(key, parts, cell)

    def of(k: int) -> NDArray[np.uint64]:
        return ids[pieces[k].first_row : pieces[k].first_row + len(pieces[k].key)]

    bounds = lowest(pieces, of, np.array(wanted), ALONE)
    return np.concatenate([bounds.drawn(piece, of(piece.part)) for piece in pieces])


def test_draws_are_successive_draws_in_proportion_to_the_weights() -> None:
    weights, rounds = [0.05, 1.0, 2.0, 0.5, 4.0], 20_000
    ids, taken, weight = ids_of(5), np.ones(5, bool), np.array(weights, np.float32)
    for wanted in (1, 2, 3):
        counts = np.zeros(5)
        for seed in range(rounds):
            key = sample_keys(ids, weight, taken, salt("balance", seed))
            counts += key <= np.sort(key)[wanted - 1]
        expected = np.array(inclusion(weights, wanted))
        spread = np.sqrt(expected * (1 - expected) / rounds)
        assert (np.abs(counts / rounds - expected) < 4.5 * spread).all(), (wanted, counts / rounds, expected)


def test_coins_keep_a_sample_with_its_weight_as_the_chance() -> None:
    weight = np.repeat(np.array([0, 0.01, 0.3, 0.9, 1], np.float32), 40_000)
    ids, taken = ids_of(len(weight)), np.ones(len(weight), bool)
    key = sample_keys(ids, weight, taken, salt("balance", 5), coins=True)
    bounds = Bounds.coins(1)
    kept = bounds.drawn(pieces_of(key)[0], ids).reshape(5, -1).mean(axis=1)
    assert kept[0] == 0 and kept[4] == 1
    for found, chance in zip(kept[1:4], (0.01, 0.3, 0.9), strict=True):
        assert abs(found - chance) < 4 * math.sqrt(chance * (1 - chance) / 40_000)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 5),
    st.data(),
)
def test_the_lowest_keys_are_drawn_and_ties_go_by_id(rows: list[tuple[int, int, bool]], parts: int, data: Any) -> None:
    """Few different keys and ids, so that there are ties of both; and cells that are drawn from separately."""
    key = np.array([NEVER if out else 2**60 + value * 2**17 for value, _, out in rows], np.uint64)
    ids = np.array([name for _, name, _ in rows], np.uint64)
    cell = np.array([name % 2 for _, name, _ in rows], np.uint16)
    there = available(pieces_of(key, parts, cell), 2, ALONE)
    assert there.tolist() == [int(((cell == c) & (key != NEVER)).sum()) for c in range(2)]
    wanted = [data.draw(st.integers(0, int(most))) for most in there]
    found = draw(key, ids, wanted, parts, cell)
    for c in range(2):
        order = [row for row in np.lexsort([np.arange(len(key)), ids, key]).tolist() if cell[row] == c]
        assert set(np.flatnonzero(found & (cell == c)).tolist()) == set(order[: wanted[c]])


def test_the_draw_of_several_ranks_is_that_of_one_and_sends_the_same_for_any_number_of_samples() -> None:
    sent = []
    for count in (3000, 30_000):
        ids = ids_of(count)
        key = sample_keys(ids, np.full(count, 0.5, np.float32), np.ones(count, bool), salt("balance", 3))
        alone = draw(key, ids, [count // 3])
        assert alone.sum() == count // 3
        pieces = pieces_of(key, 7)

        def of(k: int, ids: Any = ids, pieces: Any = pieces) -> NDArray[np.uint64]:
            return ids[pieces[k].first_row :][: len(pieces[k].key)]

        def work(own: Thread, pieces: Any = pieces, of: Any = of, count: int = count) -> Any:
            return lowest(pieces[own.rank :: 3], of, np.array([count // 3]), own), own.sent

        found = as_threads(3, work)
        for bounds, _ in found:
            together = np.concatenate([bounds.drawn(piece, of(piece.part)) for piece in pieces])
            assert together.tolist() == alone.tolist()
        sent.append(found[0][1])
    assert sent[0] == sent[1]


@pytest.mark.parametrize("wanted", [0, 1, 499, 500])
def test_none_and_all(wanted: int) -> None:
    ids = ids_of(500)
    weight = np.zeros(500, np.float32)
    weight[:100] = 1
    key = sample_keys(ids, weight, np.ones(500, bool), salt("balance", 0))
    found = draw(key, ids, [wanted])
    assert found.sum() == wanted
    assert found[:100].sum() == min(wanted, 100)  # those without weight come last
