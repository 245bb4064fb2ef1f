"""The throughput benchmark on a recipe's own packs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.throughput.measure import Settings, has_packs, measure_training
from onevision.model.device import Ranks
from onevision.recipe import Recipe


def test_a_recipe_whose_packs_are_there_is_measured_on_them(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    assert has_packs(recipe)
    row = measure_training(recipe, Ranks(), Settings(warmup=1, steps=2, profiled=0))
    assert row["data"] == f"packs of {recipe.data.packs}"
    assert row["finite"] and row["slots"] == 2 * 2 * recipe.data.sequence_length and row["kernels"] is None
