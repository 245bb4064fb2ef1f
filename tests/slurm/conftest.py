"""One local Slurm cluster of 16 nodes for all tests of this folder, and what their jobs train on."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.slurm.lab import Lab
from onevision.recipe import Recipe, save_recipe
from tests.training.conftest import data_values, recipe_values

__all__ = ["data_values", "recipe_values"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:  # whole jobs, on a machine that may be busy
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A cluster of the tests' own, beside that of `make slurm-up`. What a killed test run has left is removed first."""
    missing = [name for name in ("slurmctld", "slurmdbd", "munged", "mariadbd", "ip") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs a local Slurm: {', '.join(missing)} not installed (see `make slurm-up`)")
    if os.geteuid():
        pytest.skip("a local Slurm needs root")
    cluster = Lab("test")
    with Path("/var/tmp/onevision-slurm-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs on one machine take turns
        cluster("down")
        cluster("up")
        yield cluster
        cluster("down")


@pytest.fixture(scope="session")
def site_file(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of the tests' cluster."""
    return lab.site_file(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def recipe_file(
    recipe_values: Callable[..., Recipe], data_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny recipe with a corpus and packs."""
    path = tmp_path_factory.mktemp("recipe") / "stage1_5.yaml"
    save_recipe(recipe_values("", stage="stage1_5"), path)
    return path
