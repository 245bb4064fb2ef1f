"""What is tried: recipes from the fastest to the most frugal, and the same for peers."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jobs.here import visible_gpus
from onevision.errors import InputError
from onevision.recipe import Recipe, load_recipe, recipe_dict, recipe_from
from onevision.training.memory import memory_estimate

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
# What is recomputed in the backward pass, from nothing to everything: each step down frees memory and costs time, and a
# try that does not fit costs the seconds of a step. 1.7b in stage 1.5, one pack of 8,192 a micro-batch, has 79, 72, 66
# and 47 GB in tensors, found by a step on tensors without content: an H100 of 85 GB has room for the first.
TRIES = (
    "model.recompute=none",
    "model.recompute=selective model.recompute_modules=[activation]",
    "model.recompute=selective model.recompute_modules=[activation,mlp]",
    "model.recompute=full",
)
# Packs a micro-batch for GPUs with room to spare: as many launches for more tokens. None of them where the estimate of
# memory, which is on the safe side, has no room for it: a GPU of 80 GB loses no time with them.
LARGER = (4, 2)
_SECONDS = 60  # nvidia-smi of a GPU that is lost can hang


@cache
def gpu_memory() -> int:
    """Bytes of memory of this machine's first GPU; 0 without one. The driver is asked once.

    Raises:
        InputError: the driver does not say it.
    """
    if not visible_gpus():
        return 0
    # Not by torch, whose context would take half a GB beside the rows' own processes.
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout
        return int(told.splitlines()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise InputError(
            f"nvidia-smi does not tell the GPU's memory ({error}): name a preset and packs a micro-batch, as in "
            "model=1.7b train.micro_batch_size=1"
        ) from None


def default_model(memory: int) -> str:
    """The preset that a GPU with so many bytes trains in stage 1.5; the tiny one without a GPU."""
    if not memory:
        return "tiny"
    return "1.7b" if memory > 70_000 << 20 else "0.6b"


def stage_recipe(model: str, stage: str, overrides: Sequence[str]) -> Recipe:
    """The stage's recipe of a preset; that of 8B with the preset where it has none.

    Raises:
        InputError: as `load_recipe`.
    """
    own = RECIPES / model / f"{stage}.yaml"
    if own.exists():
        return load_recipe(own, overrides)
    return load_recipe(RECIPES / "8b" / f"{stage}.yaml", [f"model.preset={model}", *overrides])


def training_tries(recipe: Recipe, text: str, memory: int = 0) -> list[Recipe]:
    """The recipe with each of the settings in `text` ("key=value key=value; …"), or of those of TRIES that its other
    settings allow, from the fastest on; before them the largest of LARGER that divides its batch and for which a GPU of
    `memory` bytes has room without recomputation.

    Raises:
        InputError: as `load_recipe`.
    """
    if text:
        return [_changed(recipe, entry.split()) for entry in text.split(";")]
    tries = []
    for size in LARGER:
        if size > recipe.train.micro_batch_size and recipe.train.global_batch_size % size == 0:
            larger = _changed(recipe, [f"train.micro_batch_size={size}", TRIES[0]])
            if memory_estimate(larger, 1).total <= memory:
                tries.append(larger)
                break
    for entry in TRIES:
        with suppress(InputError):  # CUDA graphs exclude most
            tries.append(_changed(recipe, entry.split()))
    return tries


def with_micro_batches(recipe: Recipe, world_size: int, micro_batches: int) -> Recipe:
    """The recipe with so many micro-batches a rank and step; 0: its own global batch, or at least one for each rank."""
    ranks = max(1, world_size // recipe.parallel.model_ranks)
    once = recipe.train.micro_batch_size * ranks
    count = micro_batches or max(1, recipe.train.global_batch_size // once)
    return replace(recipe, train=replace(recipe.train, global_batch_size=count * once, init_from=""))


def peer_tries(own: dict[str, str], overrides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The peers by name, each without recomputation and, if that does not fit, with it."""
    recipe = stage_recipe(own["model"], "stage1_5", overrides)
    common: dict[str, Any] = {
        "model": recipe.model.preset,
        "sequence_length": recipe.data.sequence_length,
        "micro_batches": int(own["micro_batches"]) or recipe.train.global_batch_size,
        "warmup": int(own["warmup"]),
        "steps": int(own["steps"]),
    }
    named: dict[str, dict[str, Any]] = {
        "transformers-liger-varlen": {"attention": "torch_varlen", "liger": True},
        "transformers-varlen": {"attention": "torch_varlen"},
        "transformers-liger-varlen-autocast": {"attention": "torch_varlen", "liger": True, "precision": "autocast"},
        "transformers-sdpa": {"attention": "sdpa"},
        "transformers-flash": {"attention": "flash_attention_2"},
    }
    return {
        name: [common | values | {"checkpointing": again} for again in (False, True)] for name, values in named.items()
    }


def _changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(OmegaConf.create(recipe_dict(recipe)), OmegaConf.from_dotlist(list(settings)))
    values = OmegaConf.to_container(merged)
    assert isinstance(values, dict)
    return recipe_from({str(key): value for key, value in values.items()})
