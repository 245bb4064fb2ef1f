"""What each rank of a training job does. It knows its place from the launcher, and needs no launcher's package."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.records import leave_record
from onevision.errors import Hung
from onevision.recipe import Recipe

if TYPE_CHECKING:
    from jobs.sites import Site


def train_here(recipe: Recipe, site: Site | None = None) -> dict[str, Any]:
    """The training job itself: one process a rank, which finds its place in the launcher's environment. With a `site`
    the first rank queues the evaluation of checkpoints there."""
    ready_model()
    evaluations = None
    if site is not None and recipe.evaluation.tasks:
        from jobs.harness import EvaluationQueue

        evaluations = EvaluationQueue(recipe, site)
        if os.environ["RANK"] == "0":
            evaluations.catch_up()
    try:
        return _train(recipe, evaluations)
    finally:
        if evaluations is not None:
            evaluations.close()


def _train(recipe: Recipe, on_checkpoint: Callable[[int], None] | None) -> dict[str, Any]:
    from onevision.model.device import Ranks
    from onevision.training.loop import train

    world_size = int(os.environ["WORLD_SIZE"])
    return train(
        recipe,
        Ranks(
            rank=int(os.environ["RANK"]),
            world_size=world_size,
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            rendezvous=f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
        ),
        on_hang=partial(leave_record, Path(os.environ["RANK_RECORD"]), Hung.exit_code),
        on_checkpoint=on_checkpoint,
    )


def initialise_here(recipe: Recipe) -> dict[str, Any]:
    """The job of `init`."""
    ready_model()
    from onevision.training.loop import initialise

    return initialise(recipe)


def ready_model() -> None:
    """What a process does before it imports the model."""
    quiet()
    from onevision.model.megatron import import_megatron

    import_megatron()
    # What was imported stays: no collection of garbage, of which Megatron asks for one a save, is to look through it.
    gc.freeze()


def quiet() -> None:
    """Keep remarks that no user can act on out of the log: packages that a CPU does not need, names that change."""
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    logging.getLogger("megatron").setLevel(logging.ERROR)
