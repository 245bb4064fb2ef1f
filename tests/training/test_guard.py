"""A step whose loss or gradient is bad: named, skipped, left out; the same on all ranks, and after a kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onevision.data.ledger import Plan, digest, place_of
from onevision.errors import InputError
from onevision.recipe import Recipe
from onevision.training.bad_steps import read_bad_steps
from onevision.training.checkpoint_files import checkpoint_steps
from onevision.training.history import read_metrics
from onevision.training.inputs import open_sources
from tests.forks import forked, wait_for
from tests.training.faults import SPIKE, Fault, digests, packs_of_step, train_with
from tests.training.test_loop import curve

MakeRecipe = Callable[..., Recipe]
STEPS = 5  # in these no pack comes twice
BAD = 3  # the step that goes wrong


def run_to_end(fault: Fault, recipe: Recipe) -> str:
    """Train in a process of its own; returns the line of its error, or nothing."""
    with forked(train_with, fault, recipe) as child:
        code = child.join()
        assert code in (0, 4, 77), child.error
        return f"{code}: {child.error}" if code else ""


def fault_at(recipe: Recipe, step: int = BAD, **how: Any) -> Fault:
    return Fault(packs_of_step(recipe, step)[:1], **how)


def planned(recipe: Recipe, step: int) -> list[dict[str, str]]:
    sources = open_sources(recipe.data)
    ids = Plan(sources, recipe.seed, recipe.train.global_batch_size).samples(step)
    return [vars(place_of(sources, int(number))) for number in ids]


@pytest.mark.parametrize(("backward", "what"), [(False, "loss"), (True, "gradient norm")])
def test_a_run_stops_and_names_the_samples_of_the_whole_batch(
    make_recipe: MakeRecipe, backward: bool, what: str
) -> None:
    recipe = make_recipe(steps=STEPS)
    error = run_to_end(fault_at(recipe, backward=backward), recipe)
    assert error.startswith(f"4: step {BAD}: {what} is ")
    assert f"samples are named in {recipe.output}/bad_steps.jsonl; to go on without" in error
    assert error.endswith("this step: train.on_divergence=skip")
    [row] = read_bad_steps(recipe.output)
    assert (row["step"], row["what"], row["action"], row["threshold"]) == (BAD, what, "stop", None)
    assert row["value"] in ("nan", "inf")
    assert row["samples"] == planned(recipe, BAD)
    assert checkpoint_steps(recipe.output) == [2]
    assert [row["step"] for row in read_metrics(recipe.output)] == list(range(1, BAD))


@pytest.mark.parametrize("backward", [False, True])
def test_a_skipped_step_leaves_weights_and_moments_as_they_were(make_recipe: MakeRecipe, backward: bool) -> None:
    recipe = make_recipe(steps=STEPS, on_divergence="skip", checkpoint={"interval": 1, "keep": 9})
    assert not run_to_end(fault_at(recipe, backward=backward), recipe)
    before, after, later = (digests(recipe.output, step) for step in (BAD - 1, BAD, BAD + 1))
    assert before == after != later
    rows = read_metrics(recipe.output)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "bad" in row] == [BAD]
    row = rows[BAD - 1]
    assert row["action"] == "skip" and row["bad"].split(" is ")[1] in ("nan", "inf")
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    assert row["lr"] != rows[BAD]["lr"]
    plan = Plan(open_sources(recipe.data), recipe.seed, recipe.train.global_batch_size)
    assert [row["samples_digest"] for row in rows] == [digest(plan.samples(step)) for step in range(1, STEPS + 1)]
    [record] = read_bad_steps(recipe.output)
    assert record["action"] == "skip" and len(record["samples"]) == row["samples"]


def test_a_run_that_is_killed_goes_on_as_the_undisturbed_one(make_recipe: MakeRecipe) -> None:
    """Before a step that is skipped; test_guard_ranks.py has one that is killed after a rewind."""
    settings = {
        "steps": STEPS,
        "on_divergence": "skip",
        "checkpoint": {"interval": 2, "keep": 9},
        "spike_factor": 1.5,
        "spike_window": 2,
    }
    whole, killed = (make_recipe(name, **settings) for name in ("whole", "killed"))
    fault = fault_at(whole, 4, values=(SPIKE,))
    assert not run_to_end(fault, whole)
    [record] = read_bad_steps(whole.output)
    assert record["value"] > record["threshold"] > 0
    with forked(train_with, fault, killed) as child:
        wait_for(lambda: len(read_metrics(killed.output)) >= 3)
        child.kill()
    assert not run_to_end(fault, killed)
    assert curve(killed.output) == curve(whole.output)
    assert digests(killed.output, STEPS) == digests(whole.output, STEPS)
    [again] = read_bad_steps(killed.output)
    assert again == record | {"time": again["time"]}


def test_a_rewind_goes_back_and_leaves_the_batch_out(make_recipe: MakeRecipe) -> None:
    skipped, rewound = (make_recipe(action, steps=STEPS, on_divergence=action) for action in ("skip", "rewind"))
    fault = fault_at(skipped)
    assert not run_to_end(fault, skipped)
    assert not run_to_end(fault, rewound)
    # Computed again from the checkpoint, without the batch: the weights are those of the run that skipped its update.
    assert digests(rewound.output, STEPS) == digests(skipped.output, STEPS)
    expected, found = curve(skipped.output), curve(rewound.output)
    row = found.pop(BAD - 1)
    del expected[BAD - 1]
    assert found == expected
    assert row["action"] == "left out" and row["tokens"] == 0
    [record] = read_bad_steps(rewound.output)
    assert (record["step"], record["action"]) == (BAD, "rewind")
    assert record["samples"] == planned(rewound, BAD)


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=STEPS, on_divergence="rewind")
    error = run_to_end(fault_at(recipe, 1), recipe)
    assert error.startswith("4: step 1: loss is ") and "; there is no checkpoint to go back to; its" in error


def test_so_many_skips_and_no_more_and_a_person_may_decide_otherwise(make_recipe: MakeRecipe) -> None:
    settings = {"steps": STEPS, "on_divergence": "skip", "checkpoint": {"interval": 1, "keep": 2}}
    recipe = make_recipe(max_skipped_steps=1, **settings)
    fault = Fault([*packs_of_step(recipe, 2), *packs_of_step(recipe, 3), *packs_of_step(recipe, 5)])
    for _ in range(2):  # also when it is started again: the number of skips is part of the checkpoint
        error = run_to_end(fault, recipe)
        assert error.startswith("4: step 3: ") and "1 steps were skipped, as many as train.max_skipped_steps" in error
    assert not run_to_end(fault, make_recipe(max_skipped_steps=3, **settings))
    assert [row["action"] for row in read_bad_steps(recipe.output)] == ["skip"] * 3


def test_a_damaged_file_of_bad_steps_is_one_line(tmp_path: Path) -> None:
    for text in ('{"step": 3, "action": "skip"}\n{"step": 4, "act', "[]\n", '{"step": 3}\n', "\0"):
        (tmp_path / "bad_steps.jsonl").write_text(text)
        with pytest.raises(InputError, match=r"bad_steps\.jsonl was damaged: it is not a row of JSON a line"):
            read_bad_steps(tmp_path)
