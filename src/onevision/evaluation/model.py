"""A checkpoint as a model that answers, on the GPU where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from onevision.model.device import Ranks, runtime_context, set_threads, start
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PRESETS
from onevision.recipe import Recipe
from onevision.training import checkpoint, checkpoint_files
from onevision.training.parts import build_model


def answering(recipe: Recipe) -> Recipe:
    """The recipe with the precision that answers are computed in: prompts have any number of tokens, which FP8 products
    do not take."""
    precision = "bf16" if recipe.train.precision == "fp8" else recipe.train.precision
    return replace(recipe, train=replace(recipe.train, precision=precision))


def find_checkpoint(recipe: Recipe, path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run folder, or a checkpoint's own folder, and its checkpoint.json.

    Raises:
        InputError: there is none, or it is of another size than the recipe's model.
        DataError: it is broken.
    """
    folder, content = checkpoint_files.find(path)
    checkpoint_files.check_architecture(folder, content, PRESETS[recipe.model.preset])
    return folder, content


def load_answering(
    recipe: Recipe, folder: Path, content: dict[str, Any], *, local_rank: int = 0, processes: int = 1
) -> tuple[OneVisionModel, torch.device]:
    """The model of a checkpoint, in evaluation mode and with a memory for keys and values, and its device. It is one of
    `processes` on this machine that each have a whole model."""
    device = start(Ranks(local_rank=local_rank), recipe.seed)
    set_threads(recipe.train.threads, processes)
    with runtime_context(device):
        model = build_model(recipe, device, initialize=False, generates=True)
        checkpoint.load_model(folder, content, model)
    return model.eval(), device
