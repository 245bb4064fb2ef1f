"""Hardware that errs: a bad step is computed again, and what is then done depends on whether it comes out the same."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onevision.errors import InputError, Suspect
from onevision.recipe import Recipe, recipe_from
from onevision.training.bad_steps import read_bad_steps
from onevision.training.history import read_metrics
from tests.forks import forked
from tests.training.faults import Fault, digests, packs_of_step, train_with
from tests.training.test_guard_ranks import STEPS, on_two
from tests.training.test_loop import curve

MakeRecipe = Callable[..., Recipe]
BAD = 3
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 100_000}


def on_one(fault: Fault, recipe: Recipe) -> tuple[int | None, str]:
    with forked(train_with, fault, recipe) as child:
        return child.join(), child.error


def settings(**more: Any) -> dict[str, Any]:
    return {"steps": STEPS, "rerun": "validate", "checkpoint": {"interval": 2, "keep": 9}} | more


@pytest.fixture(scope="module")
def undisturbed(recipe_values: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of two ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = recipe_values(str(folder / "run"), **settings(performance=OVERLAP))
    assert on_two(Fault([]), recipe, folder) == [0, 0]
    return recipe


@pytest.mark.parametrize("backward", [False, True])
def test_an_error_that_does_not_come_again_leaves_no_trace(
    make_recipe: MakeRecipe, undisturbed: Recipe, tmp_path: Path, backward: bool
) -> None:
    disturbed = make_recipe(**settings(performance=OVERLAP))
    packs = packs_of_step(disturbed, BAD)[:1]
    assert on_two(Fault(packs, times=1, backward=backward), disturbed, tmp_path, "disturbed") == [0, 0]
    rows = curve(disturbed.output)
    what = "gradient norm" if backward else "loss"
    assert [row.pop("recomputed", "") for row in rows] == ["", "", f"{what} is nan", "", ""]
    assert rows == curve(undisturbed.output)
    assert digests(disturbed.output, STEPS) == digests(undisturbed.output, STEPS)
    [record] = read_bad_steps(disturbed.output)
    assert (record["step"], record["action"]) == (BAD, "recomputed")
    assert record["nodes"] == ([] if backward else [platform.node()])  # the backward pass of which rank is not known


def test_the_same_result_is_to_be_checked_elsewhere_and_then_believed(make_recipe: MakeRecipe) -> None:
    bad = 1  # before Megatron's machine has seen a step
    recipe = make_recipe(**settings())
    fault = Fault(packs_of_step(recipe, bad)[:1])
    code, error = on_one(fault, recipe)
    assert code == Suspect.exit_code
    assert error.startswith(f"step {bad}: loss is nan, and the same when it was computed again on {platform.node()}: ")
    assert [row["step"] for row in read_metrics(recipe.output)] == list(range(1, bad))
    [record] = read_bad_steps(recipe.output)
    assert record["action"] == "elsewhere" and record["nodes"] == [platform.node()]
    code, error = on_one(fault, recipe)
    assert (code, error.partition(";")[0]) == (4, f"step {bad}: loss is nan")
    assert on_one(fault, make_recipe(**settings(on_divergence="skip"))) == (0, "")  # it was believed before
    [record] = read_bad_steps(recipe.output)
    assert record["action"] == "skip" and record["nodes"] == [platform.node()]
    assert [row["step"] for row in read_metrics(recipe.output) if "bad" in row] == [bad]


def test_another_node_that_computes_right_takes_the_run_to_its_end(make_recipe: MakeRecipe) -> None:
    undisturbed, moved = (make_recipe(name, **settings()) for name in ("undisturbed", "moved"))
    assert on_one(Fault([]), undisturbed) == (0, "")
    assert on_one(Fault(packs_of_step(moved, BAD)[:1]), moved)[0] == Suspect.exit_code
    assert on_one(Fault([]), moved) == (0, "")
    assert curve(moved.output) == curve(undisturbed.output)


def test_results_that_differ_every_time_are_never_believed(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(**settings(on_divergence="skip"))
    fault = Fault(packs_of_step(recipe, BAD)[:1], backward=True, values=(math.nan, 1e30))
    for _ in range(2):
        code, error = on_one(fault, recipe)
        assert code == Suspect.exit_code and "and something else when it was computed again" in error


def test_scales_that_change_with_every_pass_are_refused() -> None:
    train = {"precision": "fp8", "fp8_recipe": "delayed", "rerun": "validate"}
    with pytest.raises(InputError, match="a step cannot be computed again as it was: use train.fp8_recipe=tensorwise"):
        recipe_from({"train": train})
