"""A run that reads a mixture: its metrics, its lineage, and what is refused before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.preflight import preflight, waiting_keys
from jobs.sites import Site
from onevision.corpus.build import build_corpus
from onevision.data.ledger import Plan, digest
from onevision.files import read_json
from onevision.packing.build import build_packs
from onevision.recipe import Recipe, load_recipe, recipe_from
from onevision.training.history import read_metrics
from onevision.training.inputs import open_inputs, open_sources
from onevision.training.loop import train
from tests.fixtures import sample_record, write_records

MakeRecipe = Callable[..., Recipe]
CPUS = Site(name="here", scheduler="none", tasks_per_node=2)


@pytest.fixture(scope="module")
def mixture(data_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The data section of a mixture of the usual corpus and one of photographs, which is read twice as often."""
    root = tmp_path_factory.mktemp("photos")
    write_records(root / "source", [replace(sample_record(i), id=f"p{i}", category="photo") for i in range(20)])
    own = {"source": str(root / "source"), "corpus": str(root / "corpus"), "packs": str(root / "packs")}
    data = recipe_from({"data": {**data_values, **own}}).data
    build_corpus(data, Path(data.corpus))
    build_packs(data, Path(data.packs))
    first = {"corpus": data_values["corpus"], "packs": data_values["packs"]}
    second = {"corpus": data.corpus, "packs": data.packs, "epochs": 2}
    return {"corpus": "", "packs": "", "mixture": [first, second]}


def test_a_run_on_a_mixture_tells_each_sources_epochs_and_lineage(
    make_recipe: MakeRecipe, mixture: dict[str, Any]
) -> None:
    recipe = make_recipe(data=mixture, steps=12, checkpoint={"interval": 12})
    assert preflight(recipe, CPUS, nodes=1).problems == []
    train(recipe)
    rows = read_metrics(recipe.output)
    assert {name for row in rows for name in row["loss_by_category"]} == {"digits", "charts", "text", "photo"}
    plan = Plan(open_sources(recipe.data), recipe.seed, recipe.train.global_batch_size)
    assert [row["samples_digest"] for row in rows] == [digest(plan.samples(step)) for step in range(1, 13)]
    epochs = rows[-1]["epoch_by_source"]
    packs = {source.entry.packs: source.packs.packs for source in open_inputs(recipe).sources.sources}
    assert list(epochs) == [entry["packs"] for entry in mixture["mixture"]] == list(packs)
    assert sum(epochs[folder] * packs[folder] for folder in packs) == pytest.approx(12 * 2)
    assert rows[-1]["epoch"] == min(epochs.values())
    lineage = read_json(Path(recipe.output) / "lineage.json")
    for name in ("packs.0", "corpus.0", "packs.1", "corpus.1"):
        assert lineage["inputs"][name] == lineage["made_from"][name]["step.json"]["summary"]["fingerprint"]
    assert load_recipe(Path(recipe.output) / "recipe.yaml") == recipe
    changed = make_recipe(data={"mixture": [mixture["mixture"][0], {**mixture["mixture"][1], "epochs": 3}]}, steps=12)
    (problem,) = preflight(changed, CPUS, nodes=1).problems
    assert "data.mixture[1].epochs=3.0 (was 2.0)" in problem


def test_what_is_missing_in_a_mixture_is_told_and_may_be_waited_for(
    make_recipe: MakeRecipe, mixture: dict[str, Any], tmp_path: Path
) -> None:
    entries = [mixture["mixture"][0], {"corpus": str(tmp_path / "c"), "packs": str(tmp_path / "p")}]
    recipe = make_recipe(data={**mixture, "mixture": entries})
    problems = preflight(recipe, CPUS, nodes=1).problems
    assert [problem.split()[0] for problem in problems] == [f"{tmp_path}/c/corpus.h5", f"{tmp_path}/p/packs.h5"]
    assert waiting_keys(recipe, [str(tmp_path)]) == {"data.mixture[1].corpus", "data.mixture[1].packs"}
    assert preflight(recipe, CPUS, nodes=1, waits_for=[str(tmp_path)]).problems == []
