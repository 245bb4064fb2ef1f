"""The switch for the same bits twice. What it does on a GPU is not tried here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onevision.recipe import Recipe
from onevision.training.run import deciding_values
from tests.forks import forked
from tests.training.faults import Fault, digests
from tests.training.test_guard_ranks import on_two
from tests.training.test_loop import curve

MakeRecipe = Callable[..., Recipe]


def switched() -> None:
    """Both ways, in a process of its own."""
    from onevision.training.determinism import set_determinism

    before = dict(os.environ)
    assert not torch.are_deterministic_algorithms_enabled()
    set_determinism(True)
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.empty(4).put_(torch.zeros(2, dtype=torch.int64), torch.ones(2))
    os.environ.clear()
    os.environ.update(before)
    set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert dict(os.environ) == before


def test_the_switch_is_for_one_start_and_leaves_nothing_when_off() -> None:
    with forked(switched) as child:
        assert child.join() == 0, child.error


def test_two_runs_on_two_ranks_give_the_same_bits(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # Nothing in the model lacks a deterministic kernel, or it would have raised.
    one, two = (make_recipe(name, steps=3, deterministic=True, precision="bf16") for name in ("one", "two"))
    for recipe in (one, two):
        assert on_two(Fault([]), recipe, tmp_path, recipe.output[-3:]) == [0, 0]
    assert curve(one.output) == curve(two.output)
    assert digests(one.output, 3) == digests(two.output, 3) != {}
    assert deciding_values(one) == deciding_values(make_recipe(steps=3, precision="bf16"))
