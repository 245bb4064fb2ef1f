"""The training jobs: initialise, train one stage, resume. A job is given the recipe; what it learns stays on disk."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.arguments import parse, recipe_of, run_recipe
from jobs.cluster import Work, slurm_problems
from jobs.harness import evaluate_awaited, harness_problems, refuse_without_harness, task_input_problems
from jobs.here import launch
from jobs.place import Place, place_of, start
from jobs.preflight import Preflight, preflight
from jobs.ranks import initialise_here, train_here
from jobs.sites import Site
from onevision.errors import InputError
from onevision.recipe import Recipe, layout_problems


def run_init(arguments: list[str]) -> int:
    """python -m jobs init RECIPE.yaml [key=value ...]

    Writes a stage-0 checkpoint of the recipe's model with weights drawn from its seed.
    """
    recipe, place = recipe_of(arguments, "init")
    return start(init_work(recipe), place, lambda summary: _show_initial(recipe, summary))


def run_train(arguments: list[str]) -> int:
    """python -m jobs train RECIPE.yaml [nodes=N] [time=D-HH:MM:SS] [site=NAME] [key=value ...]

    Trains one stage to its end: queued on a Slurm cluster, on this machine at once where there is none (`processes=N`
    ranks then; default: the GPUs, or 1). The same command continues a run that was interrupted. What cannot work is
    refused before anything is queued.
    """
    recipe, place = recipe_of(arguments, "train")
    return train_at(recipe, place)


def run_resume(arguments: list[str]) -> int:
    """python -m jobs resume RUN [nodes=N] [time=D-HH:MM:SS] [site=NAME] [key=value ...]

    Continues a run from its last complete checkpoint, with the recipe in its folder, on any number of nodes.
    """
    run, overrides, own = parse(arguments, "resume", "run folder")
    recipe = run_recipe(run, [*overrides, f"output={run}"])
    if recipe.stage == "stage0":
        raise InputError(f"{run} is a stage-0 run, which is not trained: resume stage 1, 1.5 or 2")
    return train_at(recipe, place_of(own))


def train_at(recipe: Recipe, place: Place) -> int:
    """Train a recipe at a place: refuse what cannot work, then run it here or queue it."""
    if place.here:
        if recipe.evaluation.tasks:  # before hours of training, not after them
            refuse_without_harness(place.site)
        train_stage(recipe, place.ranks)
        evaluate_awaited(recipe, place)
        return 0
    work = train_work(recipe, place.nodes, place.site)
    check = check_training(recipe, place)
    check.refuse()
    print(check.text, flush=True)
    return start(work, place)


def check_training(recipe: Recipe, place: Place, waits_for: Collection[str] = frozenset()) -> Preflight:
    """All that stands against queueing a training job, Slurm's own objections among it."""
    check = preflight(recipe, place.site, place.nodes, place.minutes, waits_for)
    work = replace(train_work(recipe, place.nodes), minutes=place.minutes)
    evaluation = task_input_problems(recipe.evaluation, waits_for)
    if recipe.evaluation.tasks:
        evaluation += harness_problems(place.site)
    return replace(check, problems=[*check.problems, *evaluation, *slurm_problems(work, place.site)])


def init_work(recipe: Recipe) -> Work:
    """The job of `init`."""
    return Work("init", initialise_here, (recipe,), log_folder=log_folder(recipe))


def train_work(recipe: Recipe, nodes: int, site: Site | None = None) -> Work:
    """The training job of a recipe, which queues its evaluations on the `site`."""
    log = log_folder(recipe)
    run = Path(recipe.output)
    return Work(
        recipe.name, train_here, (recipe, site), log, needs="nodes", nodes=nodes, run=run, steps=recipe.train.steps
    )


def train_stage(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Launch the training job of a recipe and wait for it; returns the run's summary."""
    problems = layout_problems(recipe, processes)
    if problems:
        raise InputError("; ".join(problems))
    summary = launch(recipe.name, train_here, recipe, log_folder=log_folder(recipe), processes=processes)
    print(f"{recipe.output}: {summary['steps']} steps, loss {summary['loss']:.4f}", flush=True)
    return summary


def _show_initial(recipe: Recipe, summary: dict[str, Any]) -> None:
    print(f"{recipe.output}: {summary['parameters']:,} parameters")


def log_folder(recipe: Recipe) -> Path:
    """Folder of the logs of a run.

    Raises:
        InputError: the recipe names no run folder.
    """
    if not recipe.output:
        raise InputError("output is empty: name the run folder with output=runs/NAME")
    return Path(recipe.output) / "log"
