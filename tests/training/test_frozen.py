"""A part that is not trained has no gradients to be sent and no state in the optimizer, on any stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onevision.model.device import Ranks, runtime_context, start
from onevision.recipe import Recipe
from onevision.training.parts import build_parts
from onevision.training.stepper import Stepper
from tests.forks import forked

FREEZE = [[], ["vision"], ["vision", "language"], ["vision", "adapter"]]


def check(recipe: Recipe, rank: int, folder: Path) -> None:
    """Count, on one of two stages, what belongs to trained parameters."""
    device = start(Ranks(rank, 2, rank, 2, f"file://{folder / 'rendezvous'}"), 1, parallel=recipe.parallel)
    with runtime_context(device):
        for freeze in FREEZE:
            changed = replace(recipe, model=replace(recipe.model, freeze=freeze))
            stepper = Stepper(changed, build_parts(changed, device), 1)
            named = dict(stepper.parts[0].named_parameters())
            trained = {name: p for name, p in named.items() if name.split(".")[0] not in freeze}
            buffers = [buffer for ddp in stepper.ddp for buffer in ddp.buffers]
            held = {id(p) for buffer in buffers for p in buffer.params}
            assert held == {id(p) for p in trained.values()}, freeze
            size = sum(p.numel() for p in trained.values())
            assert sum(buffer.grad_data.numel() for buffer in buffers) <= 1.2 * size + 1024
            parts = getattr(stepper.optimizer, "chained_optimizers", [stepper.optimizer])
            inner = [part.optimizer for part in parts if not getattr(part, "is_stub_optimizer", False)]
            moments = [state["exp_avg"] for one in inner for state in one.state.values()]
            assert sum(moment.numel() for moment in moments) == size, freeze  # one data-parallel rank has all of it
            if rank == 1:
                assert all(name.startswith("language.") for name in named)


@pytest.mark.timeout(120)
def test_nothing_is_kept_or_sent_for_frozen_parts(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(parallel={"pipeline": 2})
    with forked(check, recipe, 0, tmp_path) as first, forked(check, recipe, 1, tmp_path) as second:
        assert (first.join(), second.join()) == (0, 0), first.error + second.error
