from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from onevision.data.schedule import PATCH_COST, deal
from onevision.packing.build import build_packs
from onevision.packing.index import PackIndex
from onevision.report.dealing import STEPS, measure_dealings, pack_costs
from tests.report.packs import build_packed


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> PackIndex:
    recipe = build_packed(tmp_path_factory.mktemp("dealing"))
    return PackIndex.open(recipe.data.packs)


def test_costs_are_those_of_the_loader(index: PackIndex) -> None:
    packs = np.array([[0, 3], [index.packs - 1, 0]])
    expected = [[index.attention_cost[m] + PATCH_COST * int(index.patches[m]) for m in row] for row in packs]
    assert pack_costs(index, packs).tolist() == expected


def test_spread_equals_a_direct_computation(index: PackIndex) -> None:
    (found,) = measure_dealings(index, [4], [2], seed=7)
    steps = min(STEPS, index.packs // 4)
    drawn = np.random.default_rng([7, 4]).choice(index.packs, (steps, 4), replace=False)
    assert len(np.unique(drawn)) == 4 * steps
    spreads, waits, random_spreads, random_waits = [], [], [], []
    for packs in drawn.tolist():
        costs = [int(index.attention_cost[m]) + PATCH_COST * int(index.patches[m]) for m in packs]
        dealt = [hand.tolist() for hand in deal(np.array(costs), 2)]
        for hands, spread, wait in ((dealt, spreads, waits), ([[0, 1], [2, 3]], random_spreads, random_waits)):
            loads = [sum(costs[place] for place in hand) for hand in hands]
            spread.append((max(loads) - min(loads)) / (sum(costs) / 2))
            wait.append(1 - sum(costs) / 2 / max(loads))
    assert (found.global_batch_size, found.ranks, found.steps) == (4, 2, steps)
    assert found.spread == pytest.approx(np.mean(spreads))
    assert found.waiting == pytest.approx(np.mean(waits))
    assert found.random_spread == pytest.approx(np.mean(random_spreads))
    assert found.random_waiting == pytest.approx(np.mean(random_waits))
    assert 0 < found.spread < found.random_spread


def test_what_fits_is_measured(index: PackIndex) -> None:
    found = measure_dealings(index, [8, 6, 6, index.packs + 1], [2, 4])
    assert [(row.global_batch_size, row.ranks) for row in found] == [(6, 2), (8, 2), (8, 4)]
    assert found == measure_dealings(index, [6, 8], [2, 4])
    assert found != measure_dealings(index, [6, 8], [2, 4], seed=1)


def test_one_pack_a_rank_is_what_it_is(index: PackIndex) -> None:
    (found,) = measure_dealings(index, [4], [4])
    assert found.spread == pytest.approx(found.random_spread)
    assert found.waiting == pytest.approx(found.random_waiting)


def test_packs_in_parts_are_measured_alike(index: PackIndex, tmp_path: Path) -> None:
    recipe = build_packed(tmp_path)
    data = dataclasses.replace(recipe.data, pack_part_samples=40)
    build_packs(data, tmp_path / "parts", report=lambda line: None)
    parts = PackIndex.open(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("packs-*.h5"))) > 1
    every = np.arange(parts.packs)
    costs = np.asarray(parts.attention_cost) + PATCH_COST * np.asarray(parts.patches).astype(np.int64)
    assert pack_costs(parts, every).tolist() == costs.tolist()
    assert [row.ranks for row in measure_dealings(parts, [8], [2, 4, 8])] == [2, 4, 8]
