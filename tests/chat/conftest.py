"""A run folder with random weights, and the assistant that it makes; the corpus is that of the training tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onevision.chat.assistant import Assistant, load_assistant
from onevision.recipe import Recipe
from onevision.training.loop import initialise
from tests.fixtures import image_bytes
from tests.training.conftest import data_values, recipe_values

__all__ = ["data_values", "recipe_values"]


@pytest.fixture(scope="session")
def run(recipe_values: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A stage-0 run: its recipe, of which `output` is the folder."""
    recipe = recipe_values(str(tmp_path_factory.mktemp("chat") / "run"), stage="stage0")
    initialise(recipe)
    return recipe


@pytest.fixture(scope="session")
def assistant(run: Recipe) -> Assistant:
    """What answers from that run's checkpoint."""
    return load_assistant(replace(run, data=replace(run.data, max_pixels=28 * 28 * 16)), run.output)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Image files, one of them with blanks and a quote in its name."""
    files = {"plain": tmp_path / "plain.png", "odd": tmp_path / "it's an odd name.jpg"}
    files["plain"].write_bytes(image_bytes(60, 90))
    files["odd"].write_bytes(image_bytes(40, 40, format="JPEG"))
    return files
