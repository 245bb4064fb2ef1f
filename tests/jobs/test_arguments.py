"""The arguments of a job: its own settings beside the recipe's."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.arguments import parse
from onevision.errors import InputError

OWN = ("temperature", "step")


def test_settings_of_the_job_are_told_from_the_recipes() -> None:
    found = parse(["runs/a", "step=3", "train.steps=4", "nodes=2"], "chat", "run folder", OWN)
    assert found == (Path("runs/a"), ["train.steps=4"], {"step": "3", "nodes": "2"})


@pytest.mark.parametrize(("given", "near"), [("temprature", "temperature"), ("steps", "step"), ("node", "nodes")])
def test_a_mistyped_setting_of_the_job_names_that_one(given: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"unknown key '{given}'; the nearest is '{near}'$"):
        parse(["runs/a", f"{given}=1"], "chat", "run folder", OWN)


def test_a_mistyped_key_of_the_recipe_is_left_to_the_recipe() -> None:
    assert parse(["runs/a", "train.step=1", "seed=3"], "chat", "run folder", OWN)[1] == ["train.step=1", "seed=3"]
