"""The corpus fixture of the training tests serves evaluation too; and a model that has learned something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onevision.corpus.build import build_corpus
from onevision.corpus.record import Message, Part, Record
from onevision.packing.build import build_packs
from onevision.recipe import Recipe
from onevision.training.loop import initialise, train
from tests.fixtures import image_bytes, write_records
from tests.training.conftest import data_values, make_recipe, recipe_values

__all__ = ["colours", "data_values", "make_recipe", "recipe_values"]


@pytest.fixture(scope="session")
def colours(
    recipe_values: Callable[..., Recipe], data_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Recipe]:
    """The recipes of a model with random weights, and of a run of it that has learned "blue" or "red", of which the
    number in the question decides; 20 questions. Both are to be read only."""
    root = tmp_path_factory.mktemp("colours")
    records = [
        Record(
            id=f"colour-{i}",
            images=(image_bytes(56 + i, 56),),
            messages=(
                Message("user", (Part("image"), Part("text", f"Which colour is number {i}?"))),
                Message("assistant", (Part("text", "blue" if i % 5 else "red"),)),
            ),
            category="colours",
            language="en",
            source="test",
            license="CC0-1.0",
        )
        for i in range(20)
    ]
    write_records(root / "source", records)
    data = {**data_values, "sequence_length": 256, **{name: str(root / name) for name in ("source", "corpus", "packs")}}
    stage0 = recipe_values(str(root / "stage0"), stage="stage0", data=data)
    build_corpus(stage0.data, Path(stage0.data.corpus))
    build_packs(stage0.data, Path(stage0.data.packs))
    asked = {"corpus": data["corpus"]}
    recipe = recipe_values(
        str(root / "run"),
        init_from=stage0.output,
        steps=25,
        data=data,
        evaluation=asked,
        checkpoint={"interval": 25},  # each takes a second
    )
    initialise(stage0)
    train(recipe)
    return stage0, recipe
