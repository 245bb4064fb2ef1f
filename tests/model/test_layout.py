"""What an architecture asks of a recipe, each problem with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from onevision.errors import InputError
from onevision.model.layout import architecture_problems, start_problems, training_problems
from onevision.model.presets import PRESETS
from onevision.model.stages import ends_in_layers, stage_layers
from onevision.recipe import Recipe, layout_problems, recipe_from


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
            [
                "the 32 attention heads of language",
                "the 8 query groups",
                "the 151936 words of the vocabulary",
                "the 16 attention heads of vision",
            ],
        ),
        ({"parallel": {"pipeline": 5}}, []),
        ({"parallel": {"pipeline": 4, "virtual_pipeline": 9}}, []),
        (
            {"parallel": {"pipeline": 37}},
            ["parallel.pipeline=37 x parallel.virtual_pipeline=1 are more parts than the 36"],
        ),
        ({"parallel": {"virtual_pipeline": 2}}, ["parallel.virtual_pipeline=2 needs parallel.pipeline above 1"]),
        (
            {"parallel": {"pipeline": 2, "stage_layers": [30, 5]}},
            ["parallel.stage_layers=[30, 5]: give 2 numbers of at least 1 whose sum is the 36 layers"],
        ),
        ({"parallel": {"context": 8, "tensor": 8, "sequence": True}}, []),
        (
            {"parallel": {"context": 3}},
            ["data.sequence_length=8192 x train.micro_batch_size=1 is not a multiple of 6"],
        ),
        ({"parallel": {"sequence": True}}, ["parallel.sequence=true is about tensor-parallel ranks"]),
        ({"parallel": {"tensor": 4, "split_vision": True}}, []),
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


def test_a_part_of_a_model_needs_weights_to_start_from() -> None:
    assert start_problems(recipe()) == []
    assert start_problems(recipe(parallel={"context": 2})) == []
    assert start_problems(recipe(parallel={"tensor": 2}, train={"init_from": "runs/start"})) == []
    (problem,) = start_problems(recipe(parallel={"tensor": 2}))
    assert "train.init_from is empty" in problem and "`make init` or `make import`" in problem
    assert training_problems(recipe(parallel={"tensor": 2}, train={"global_batch_size": 8}), 8) == [problem]
    assert training_problems(recipe(parallel={"tensor": 2}, train={"global_batch_size": 8}), 8, begun=True) == []


@pytest.mark.parametrize("parallel", [{"context": 2}, {"tensor": 2, "split_vision": True}])
def test_maxima_of_images_that_a_rank_has_not_are_refused(parallel: dict[str, Any]) -> None:
    train = {"precision": "fp8", "fp8_recipe": "delayed"}
    with pytest.raises(InputError, match=rf"parallel\.{list(parallel)[-1]}=.* the maxima of delayed FP8 are"):
        recipe(parallel=parallel, train=train)
    assert recipe(parallel=parallel, train=train | {"fp8_recipe": "tensorwise"})


def test_virtual_stages_take_micro_batches_by_the_stage() -> None:
    shared = {"pipeline": 4, "virtual_pipeline": 3}
    assert layout_problems(recipe(parallel=shared, train={"global_batch_size": 16}), 8) == []
    (problem,) = layout_problems(recipe(parallel=shared, train={"global_batch_size": 12}), 8)
    assert "6 (train.global_batch_size=12 / 2 packs at a time) is not a multiple of parallel.pipeline=4" in problem


def test_all_problems_are_told_at_once() -> None:
    problems = training_problems(recipe(parallel={"tensor": 3, "pipeline": 5}), 8)
    assert len(problems) == 1 + 4 + 1


def test_parts_have_what_makes_the_dearest_cheapest() -> None:
    architecture = PRESETS["8b"]
    for parallel in ({"pipeline": 2}, {"pipeline": 4}, {"pipeline": 4, "virtual_pipeline": 2}, {"pipeline": 36}):
        made = recipe(parallel=parallel)
        layers = stage_layers(made, architecture)
        assert len(layers) == parallel["pipeline"] * parallel.get("virtual_pipeline", 1)
        assert sum(layers) == 36 and min(layers) >= 1
        first, last = ends_in_layers(architecture, [])
        loads = [float(count) for count in layers]
        loads[0] += first
        loads[-1] += last
        dearest = loads.index(max(loads))
        if layers[dearest] > 1:  # moving a layer away makes another part as dear
            assert min(loads) + 1 >= max(loads)
    assert stage_layers(recipe(parallel={"pipeline": 4}), architecture)[0] < 9  # vision stands there too
    frozen = recipe(parallel={"pipeline": 4}, model={"preset": "8b", "freeze": ["vision"]})
    assert ends_in_layers(architecture, ["vision"])[0] < first
    assert stage_layers(frozen, architecture)[0] >= stage_layers(recipe(parallel={"pipeline": 4}), architecture)[0]
    given = recipe(parallel={"pipeline": 3, "stage_layers": [2, 30, 4]})
    assert stage_layers(given, architecture) == [2, 30, 4]
