"""Talking while computing changes no loss: two ranks with overlap equal two ranks without, checkpoints included.

The norm of the gradients is a sum over the shards of each bucket: with other buckets it is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onevision.recipe import Recipe
from onevision.training.history import read_metrics
from onevision.training.loop import train
from tests.training.test_data_parallel import train_on_two

MakeRecipe = Callable[..., Recipe]
SETTINGS: dict[str, Any] = {"global_batch_size": 4, "steps": 3, "checkpoint": {"interval": 3}}


def losses(recipe: Recipe) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in read_metrics(recipe.output)]


def same(recipe: Recipe, other: Recipe) -> bool:
    pairs = zip(losses(recipe), losses(other), strict=True)
    return all(row == pytest.approx(wanted, rel=1e-5) for row, wanted in pairs)


@pytest.mark.parametrize("frozen", [[], ["vision", "language"]])
def test_overlap_changes_nothing(make_recipe: MakeRecipe, tmp_path: Path, frozen: list[str]) -> None:
    model = {"preset": "tiny", "freeze": frozen}
    plain = make_recipe("plain", model=model, **SETTINGS)
    train_on_two(plain, tmp_path, key="plain")
    expected = make_recipe("plain-again", model=model, init_from=f"{plain.output}", **{**SETTINGS, "steps": 1})
    train(expected)
    performance = {"overlap_grad_reduce": True, "overlap_param_gather": bool(frozen), "bucket_size": 20_000}
    recipe = make_recipe("overlap", model=model, performance=performance, **SETTINGS)
    train_on_two(recipe, tmp_path, key="overlap")
    assert same(recipe, plain)
    # One rank, without overlap, goes on from what two ranks with overlap saved.
    again = make_recipe("again", model=model, init_from=f"{recipe.output}", **{**SETTINGS, "steps": 1})
    train(again)
    assert same(again, expected)


def test_gradients_summed_in_bf16_are_near_those_in_fp32(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    exact = make_recipe("exact", precision="bf16", **SETTINGS)
    rounded = make_recipe("rounded", precision="bf16", grad_reduce_in_fp32=False, **SETTINGS)
    train_on_two(exact, tmp_path, key="exact")
    train_on_two(rounded, tmp_path, key="rounded")
    assert losses(exact) != losses(rounded)
    torch.testing.assert_close(losses(rounded), losses(exact), rtol=0.02, atol=0)


@pytest.mark.gpu
@pytest.mark.usefixtures("ops")
def test_overlap_on_a_gpu(make_recipe: MakeRecipe) -> None:
    plain = make_recipe("plain", precision="bf16", **SETTINGS)
    performance = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 20_000}
    recipe = make_recipe("both", precision="bf16", performance=performance, **SETTINGS)
    train(plain), train(recipe)
    assert losses(recipe)[0][0] == losses(plain)[0][0]
    torch.testing.assert_close(losses(recipe), losses(plain), rtol=5e-3, atol=0)
