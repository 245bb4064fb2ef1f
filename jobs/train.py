"""The training jobs: initialise, train one stage, resume. A job is given the recipe; what it learns stays on disk."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from jobs.arguments import parse, recipe_of, run_recipe
from jobs.cluster import launch, visible_gpus
from onevision.errors import InputError
from onevision.recipe import Recipe, layout_problems, load_recipe


def run_init(arguments: list[str]) -> int:
    """python -m jobs init RECIPE.yaml [key=value ...]

    Writes a stage-0 checkpoint of the recipe's model with weights drawn from its seed.
    """
    recipe = recipe_of(arguments, "init")
    summary = launch("init", initialise_here, recipe, log_folder=_log(recipe))
    print(f"{recipe.output}: {summary['parameters']:,} parameters")
    return 0


def run_train(arguments: list[str]) -> int:
    """python -m jobs train RECIPE.yaml [processes=N] [key=value ...]

    Trains one stage to its end. The same command continues a run that was interrupted. `processes` is the number of
    data-parallel ranks on this machine; its default is the number of GPUs, or 1.
    """
    path, overrides, own = parse(arguments, "train", "recipe file", ("processes",))
    return _train(load_recipe(path, overrides), own)


def run_resume(arguments: list[str]) -> int:
    """python -m jobs resume RUN [processes=N] [key=value ...]

    Continues a run from its last complete checkpoint, with the recipe in its folder.
    """
    run, overrides, own = parse(arguments, "resume", "run folder", ("processes",))
    recipe = run_recipe(run, [*overrides, f"output={run}"])
    if recipe.stage == "stage0":
        raise InputError(f"{run} is a stage-0 run, which is not trained: resume stage 1, 1.5 or 2")
    return _train(recipe, own)


def train_stage(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Launch the training job of a recipe and wait for it; returns the run's summary."""
    problems = layout_problems(recipe, processes)
    if problems:
        raise InputError("; ".join(problems))
    summary = launch(recipe.name, train_here, recipe, log_folder=_log(recipe), processes=processes)
    print(f"{recipe.output}: {summary['steps']} steps, loss {summary['loss']:.4f}", flush=True)
    return summary


def train_here(recipe: Recipe) -> dict[str, Any]:
    """The training job itself: one process a rank, which finds its place in the launcher's environment."""
    quiet()
    from onevision.model.device import Ranks
    from onevision.training.loop import train

    world_size = int(os.environ["WORLD_SIZE"])
    return train(
        recipe,
        Ranks(
            rank=int(os.environ["RANK"]),
            world_size=world_size,
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_size=world_size,
            rendezvous=f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
        ),
    )


def initialise_here(recipe: Recipe) -> dict[str, Any]:
    """The job of `init`."""
    quiet()
    from onevision.training.loop import initialise

    return initialise(recipe)


def quiet() -> None:
    """Keep remarks that no user can act on out of the log: packages that a CPU does not need, names that change."""
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    logging.getLogger("megatron").setLevel(logging.ERROR)


def _train(recipe: Recipe, own: dict[str, str]) -> int:
    try:
        processes = int(own.get("processes") or max(1, len(visible_gpus())))
    except ValueError:
        raise InputError(f"processes={own['processes']} is not a number") from None
    train_stage(recipe, processes)
    return 0


def _log(recipe: Recipe) -> Path:
    if not recipe.output:
        raise InputError("output is empty: name the run folder with output=runs/NAME")
    return Path(recipe.output) / "log"
