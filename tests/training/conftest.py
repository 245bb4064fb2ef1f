"""A small corpus with packs, a tokenizer and a recipe, shared by the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onevision.corpus.build import build_corpus
from onevision.packing.build import build_packs
from onevision.recipe import Recipe, recipe_from
from onevision.training.loop import train
from tests.data.conftest import ops
from tests.fixtures import sample_record, tiny_tokenizer, write_records

__all__ = ["data_values", "make_recipe", "ops", "recipe_values", "whole"]


@pytest.fixture(scope="session")
def data_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The data section of a recipe: 60 records with zero to two images, packed to 256 tokens."""
    root = tmp_path_factory.mktemp("data")
    tiny_tokenizer(root / "tokenizer")
    write_records(root / "source", [sample_record(i) for i in range(60)])
    values = {
        "source": str(root / "source"),
        "corpus": str(root / "corpus"),
        "packs": str(root / "packs"),
        "tokenizer": str(root / "tokenizer"),
        "sequence_length": 256,
        "max_pixels": 28 * 28 * 16,
        "workers": 0,
    }
    data = recipe_from({"data": values}).data
    build_corpus(data, Path(data.corpus))
    build_packs(data, Path(data.packs))
    return values


@pytest.fixture
def make_recipe(recipe_values: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    """As `recipe_values`, with run folders below the test's own folder."""
    return lambda output="run", **changes: recipe_values(str(tmp_path / output), **changes)


@pytest.fixture(scope="session")
def whole(recipe_values: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of eight steps that nothing disturbed: what disturbed ones are compared with."""
    recipe = recipe_values(str(tmp_path_factory.mktemp("whole") / "run"), steps=8)
    train(recipe)
    return recipe


@pytest.fixture(scope="session")
def recipe_values(data_values: dict[str, Any]) -> Callable[..., Recipe]:
    """A tiny FP32 recipe; keyword arguments replace whole sections or values of `train`."""

    def make(output: str, **changes: Any) -> Recipe:
        train = {
            "precision": "fp32",
            "global_batch_size": 2,
            "micro_batch_size": 1,
            "steps": 6,
            "threads": 1,
            "peak_tflops": 1.0,
        }
        values: dict[str, Any] = {
            "name": "test",
            "output": output,
            "model": {"preset": "tiny"},
            "data": dict(data_values),
            "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "eps": 1e-8},
            "checkpoint": {"interval": 2, "keep": 3},
        }
        for key, value in changes.items():
            if key in values or key in ("stage", "seed", "evaluation", "parallel", "performance", "profile"):
                values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
            else:
                train[key] = value
        return recipe_from({**values, "train": train})

    return make
