"""Some of what `make parallel-check` runs, so chosen that all code of every kind of parallelism is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parallel.compare import Case, Comparison
from benchmarks.parallel.inputs import make_inputs
from benchmarks.parallel.layouts import LAYOUTS, named
from onevision.convert.exporting import export
from onevision.recipe import load_recipe
from onevision.recipe_training import ParallelRecipe
from onevision.training.replica import replica_ranks

UNEQUAL = Case("stage1_5", "unequal")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Runs of three steps."""
    folder = tmp_path_factory.mktemp("parallel")
    make_inputs(folder)
    return Comparison(folder, steps=3)


@pytest.mark.parametrize(
    ("layout", "cases"),
    [
        ("TP2xCP2+SP", [UNEQUAL, Case("stage1", "several")]),
        ("TP2, vision split", [UNEQUAL, Case("stage1", "single")]),
        ("PP2xVPP2", [UNEQUAL, Case("stage1", "text")]),
        ("PP2xCP2", [Case("stage1", "unequal"), Case("stage1_5", "text")]),
        ("CP2", [Case("stage1", "sparse")]),
        ("TP4+SP, vision split", [Case("stage1", "sparse")]),
        ("TP2xPP2xDP2", [UNEQUAL]),
        ("PP2xVPP2xDP2, overlap", [UNEQUAL]),
    ],
)
def test_a_layout_trains_what_one_process_trains(comparison: Comparison, layout: str, cases: list[Case]) -> None:
    for case, found in comparison.run(LAYOUTS[layout], cases).items():
        assert found.met, (case, found)


@pytest.mark.parametrize(
    ("before", "after"),
    [("TP2, vision split", "PP2xVPP2"), ("PP2xDP2", "TP2xCP2+SP"), ("CP2", "one process")],
)
def test_a_run_goes_on_in_another_layout(comparison: Comparison, before: str, after: str) -> None:
    found = comparison.resumed(named(before), named(after), UNEQUAL, stop_after=1)
    assert found.met, found


def test_what_a_layout_saved_is_exported_as_what_one_process_saved(comparison: Comparison, tmp_path: Path) -> None:
    folders = []
    for name in ("one process", "TP2xPP2xDP2"):
        run = comparison.outputs[name, UNEQUAL]
        folders.append(export(run, load_recipe(run / "recipe.yaml").data, tmp_path / name).folder)
    expected, found = (
        {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}
        for folder in folders
    )
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5, msg=key)


def test_a_difference_is_seen(comparison: Comparison) -> None:
    one, other = Case("stage1_5", "single"), Case("stage1", "single")
    assert comparison.run(LAYOUTS["DP2"], [one])[one].met
    comparison._references[other] = comparison._references[one]  # what another stage should have come to
    assert not comparison.run(LAYOUTS["DP2"], [other])[other].met


def test_ranks_of_a_copy_of_the_model() -> None:
    assert replica_ranks(ParallelRecipe(), 2) == [[0], [1]]
    assert replica_ranks(ParallelRecipe(tensor=2, pipeline=2), 8) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert replica_ranks(ParallelRecipe(context=2), 4) == [[0, 1], [2, 3]]
