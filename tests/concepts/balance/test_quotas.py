"""Quotas: shares are met where they can be, by the proportions of a draw without them where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.concepts.balance.build import build_balance
from onevision.concepts.balance.quotas import Quotas, cell_targets, parse_quotas, shortfalls
from onevision.recipe import Recipe
from tests.concepts.balance.common import small_recipe, with_concepts

LANGUAGES, SOURCES = ("en", "zh", "de"), ("coyo", "mint.v2", "a=b")


def test_quotas_are_read_with_names_of_any_kind() -> None:
    texts = ["language.zh=0.25", "source.mint.v2=0.5", "source.a=b=0.1"]
    assert parse_quotas(texts, LANGUAGES, SOURCES) == Quotas({"zh": 0.25}, {"mint.v2": 0.5, "a=b": 0.1})
    assert not parse_quotas([], LANGUAGES, SOURCES) and Quotas({}, {}).cells == 1


def test_cells_are_named_languages_by_named_sources_and_the_others() -> None:
    quotas = Quotas({"zh": 0.25}, {"coyo": 0.5, "a=b": 0.1})
    numbers = np.array([0, 1, 2], np.int16)
    assert quotas.cells == 6
    assert quotas.cell_of(numbers, numbers, LANGUAGES, SOURCES).tolist() == [3, 2, 4]
    assert quotas.cell_of(numbers, numbers, LANGUAGES, ("other",) * 3).tolist() == [5, 2, 5]


def test_shares_are_met_by_scaling_the_draw() -> None:
    quotas = Quotas({"zh": 0.25}, {"coyo": 0.5})
    free = np.array([100, 300, 200, 400])  # zh x coyo, zh x others, others x coyo, others x others
    found = cell_targets(quotas, 1000, free, np.array([10_000] * 4)).reshape(2, 2)
    assert found.sum() == 1000 and found[0].sum() == 250 and found[:, 0].sum() == 500
    odds = [table[0, 0] * table[1, 1] / (table[0, 1] * table[1, 0]) for table in (found, free.reshape(2, 2))]
    assert odds[0] == pytest.approx(odds[1], rel=0.05)  # what proportional fitting keeps


def test_a_cell_with_too_few_gives_the_rest_to_the_others() -> None:
    quotas = Quotas({"zh": 0.6, "de": 0.1}, {})
    free, there = np.array([10, 10, 80]), np.array([30, 50, 400])
    found = cell_targets(quotas, 100, free, there)
    assert found[0] == 30 and found.sum() == 100
    assert found[1:].tolist() == pytest.approx([70 * 0.1 / 0.4, 70 * 0.3 / 0.4], abs=1)
    told = shortfalls(quotas, found, there)
    assert told == [{"quota": "language.zh", "asked": 0.6, "drawn": 30, "available": 30}]


def test_a_language_that_the_free_draw_leaves_out_gets_its_share() -> None:
    found = cell_targets(Quotas({"zh": 0.5}, {}), 100, np.array([0, 100]), np.array([500, 500]))
    assert found.tolist() == [50, 50]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 400), min_size=6, max_size=6),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.data(),
)
def test_targets_are_whole_fit_and_sum_up(there: list[int], shares: list[float], data: Any) -> None:
    scale = max(1.0, shares[0] + shares[1])
    quotas = Quotas({"zh": shares[0] / scale, "de": shares[1] / scale}, {"coyo": shares[2]})
    samples = data.draw(st.integers(0, sum(there)))
    free = [data.draw(st.integers(0, most)) for most in there]
    found = cell_targets(quotas, samples, np.array(free), np.array(there))
    assert found.dtype == np.int64 and found.sum() == samples
    assert (found >= 0).all() and (found <= there).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(tmp_path_factory.mktemp("quotas"), records=40)


def test_the_step_draws_its_quotas(made: Recipe, tmp_path: Path) -> None:
    recipe = with_concepts(made, samples=16, quotas=["language.zh=0.75", "source.set-1=0.75"])
    found = build_balance(recipe, tmp_path / "balanced", report=lambda line: None).summary["balance"]
    assert found["language"]["zh"] == {"before": 20, "after": 12} and found["shortfalls"] == []


def test_the_step_says_which_quotas_it_did_not_reach(made: Recipe, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = with_concepts(made, samples=30, quotas=["language.zh=0.9"])
    found = build_balance(recipe, tmp_path / "balanced", report=lines.append).summary["balance"]
    assert found["language"]["zh"]["after"] == 20 and found["drawn"] == 30
    assert found["shortfalls"] == [{"quota": "language.zh", "asked": 0.9, "drawn": 20, "available": 20}]
    assert "quotas not reached: language.zh 66.7% of 90.0%" in lines[0]
