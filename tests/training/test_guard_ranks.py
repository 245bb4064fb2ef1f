"""Bad steps on two ranks: one of them has the bad batch, and both do the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from onevision.model.device import Ranks
from onevision.recipe import Recipe
from onevision.training.bad_steps import read_bad_steps
from onevision.training.history import read_metrics
from onevision.training.loop import initialise
from tests.forks import forked, wait_for
from tests.training.faults import Fault, digests, packs_of_step, train_with
from tests.training.test_guard import BAD, planned
from tests.training.test_loop import curve

MakeRecipe = Callable[..., Recipe]
STEPS = 5


def on_two(fault: Fault, recipe: Recipe, folder: Path, key: str = "", kill_after: int = 0) -> list[int | None]:
    """Train on two ranks; exit codes. With `kill_after`, rank 1 is killed when there are so many rows."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                forked(train_with, fault, recipe, Ranks(rank, 2, rank, 2, f"file://{folder / f'meet-{key}'}"))
            )
            for rank in range(2)
        ]
        if kill_after:
            wait_for(lambda: len(read_metrics(recipe.output)) >= kill_after)
            for rank in ranks:
                rank.kill()
        return [rank.join() for rank in ranks]


def test_both_ranks_stop_and_all_samples_are_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(steps=STEPS)
    assert on_two(Fault(packs_of_step(recipe, BAD)[:1]), recipe, tmp_path) == [4, 4]
    [row] = read_bad_steps(recipe.output)
    assert row["samples"] == planned(recipe, BAD)


def test_two_ranks_equal_one_and_a_killed_pair_the_undisturbed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # With overlap the weights of an update travel in the next forward pass, also when there was no update.
    overlap = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 100_000}
    settings = {"steps": STEPS, "on_divergence": "rewind", "performance": overlap}
    one, two, killed = (make_recipe(name, **settings) for name in ("one", "two", "killed"))
    fault = Fault(packs_of_step(one, BAD)[:1])
    with forked(train_with, fault, one) as child:
        assert child.join() == 0, child.error
    assert on_two(fault, two, tmp_path, "two") == [0, 0]
    expected, found = read_metrics(one.output), read_metrics(two.output)
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=1e-5)
    for key in ("step", "samples_digest"):
        assert [row[key] for row in found] == [row[key] for row in expected]
    assert [row.get("action") for row in found] == [row.get("action") for row in expected]
    on_two(fault, killed, tmp_path, "first", kill_after=BAD)
    assert on_two(fault, killed, tmp_path, "second") == [0, 0]
    assert curve(killed.output) == curve(two.output)
    assert digests(killed.output, STEPS) == digests(two.output, STEPS)


@pytest.mark.parametrize(
    ("parallel", "backward"),
    [
        ({"pipeline": 2, "virtual_pipeline": 2}, True),
        ({"tensor": 2, "sequence": True}, False),
        ({"context": 2}, True),
    ],
)
def test_ranks_that_share_a_model_do_the_same(
    make_recipe: MakeRecipe, tmp_path: Path, parallel: dict[str, Any], backward: bool
) -> None:
    """Of a pipeline only the last stage knows the loss, and an error behind its last layer has passed no other one."""
    stage0 = make_recipe("stage0", stage="stage0", model={"preset": "mini"})
    initialise(stage0)
    settings = {
        "steps": STEPS,
        "on_divergence": "rewind" if backward else "skip",
        "init_from": stage0.output,
        "model": {"preset": "mini"},
    }
    one, two = make_recipe("one", **settings), make_recipe("two", **settings, parallel=parallel)
    fault = Fault(packs_of_step(one, BAD)[:1], backward=backward)
    with forked(train_with, fault, one) as child:
        assert child.join() == 0, child.error
    assert on_two(fault, two, tmp_path) == [0, 0]
    expected, found = read_metrics(one.output), read_metrics(two.output)
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=1e-5)
    for key in ("step", "samples_digest", "samples"):
        assert [row[key] for row in found] == [row[key] for row in expected]
    assert [row.get("bad") for row in found] == [row.get("bad") for row in expected]
    assert read_bad_steps(two.output)[0]["samples"] == planned(two, BAD)
