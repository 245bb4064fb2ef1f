"""What an architecture asks of a recipe, each problem with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from onevision.model.layout import architecture_problems, missing_parts, training_problems
from onevision.model.presets import PRESETS
from onevision.recipe import Recipe, recipe_from


def recipe(**sections: Any) -> Recipe:
    return recipe_from({"model": {"preset": "8b"}, **sections})


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({}, []),
        ({"parallel": {"tensor": 8, "pipeline": 4}}, []),
        (
            {"parallel": {"tensor": 16}},
            ["parallel.tensor=16 does not divide the 8 query groups of language of the 8b model: set it to one of 1,"],
        ),
        (
            {"parallel": {"tensor": 3}},
            ["the 32 attention heads of language", "the 8 query groups", "the 16 attention heads of vision"],
        ),
        ({"parallel": {"pipeline": 5}}, ["parallel.pipeline=5 does not divide the 36 layers of language"]),
        ({"data": {"sequence_length": 65536}}, ["data.sequence_length=65536 is above the 8b model's 40960 positions"]),
        (
            {"model": {"preset": "8b", "recompute": "full", "recompute_layers": 9}},
            ["model.recompute_layers=9 does not divide the layers of the 8b model (24 in vision, 36 in language)"],
        ),
    ],
)
def test_architecture(sections: dict[str, Any], lines: list[str]) -> None:
    problems = architecture_problems(recipe(**sections), PRESETS["8b"])
    assert len(problems) == len(lines)
    for problem, line in zip(problems, lines, strict=True):
        assert line in problem
        assert "\n" not in problem


def test_what_is_not_implemented_is_refused() -> None:
    assert missing_parts(recipe()) == []
    (problem,) = missing_parts(recipe(parallel={"tensor": 2}))
    assert "not part of this version: set both to 1" in problem


def test_all_problems_are_told_at_once() -> None:
    problems = training_problems(recipe(parallel={"tensor": 3, "pipeline": 5}), 8)
    assert len(problems) == 1 + 4 + 1
