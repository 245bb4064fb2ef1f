"""What the tests of export and import share: the tiny model in a run folder, read again in two ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onevision.convert.tensors import MegatronTensors
from onevision.model.device import runtime_context
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PRESETS
from onevision.recipe import DataRecipe, ModelRecipe, Recipe, TrainRecipe
from onevision.training.checkpoint import Checkpointer, load_model
from onevision.training.checkpoint_files import find
from tests.fixtures import tiny_tokenizer
from tests.model.common import random_model

TINY = PRESETS["tiny"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def tiny_recipe(precision: str = "fp32", seed: int = 7) -> Recipe:
    """A recipe of the tiny model."""
    return Recipe(seed=seed, model=ModelRecipe(preset="tiny"), train=TrainRecipe(precision=precision))


def tiny_data(folder: Path) -> DataRecipe:
    """A tokenizer in a folder, and small pixel limits."""
    tiny_tokenizer(folder)
    return DataRecipe(tokenizer=str(folder), min_pixels=28 * 28, max_pixels=128 * 128)


def saved_run(run: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Path:
    """A run folder with a checkpoint as training writes it."""
    with runtime_context(device):
        writer = Checkpointer(run, TINY, keep=1, asynchronous=False)
        writer.save(30, [random_model(TINY, dtype=dtype, seed=3)], wait=True)
        writer.close()
    return run


def loaded(run: Path, dtype: torch.dtype = torch.float32) -> OneVisionModel:
    """The model of a run folder, as training and evaluation load it."""
    model = random_model(TINY, dtype=dtype, seed=99)
    with runtime_context(torch.device("cpu")):
        load_model(*find(run), model)
    return model


def megatron_tensors(run: Path) -> dict[str, Tensor]:
    """All tensors of a run folder's checkpoint."""
    store = MegatronTensors(find(run)[0])
    return {key: store.read(key) for key in store.info}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change config.json in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
