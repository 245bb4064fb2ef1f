"""A stage that read a balanced selection: the report compares it with that, and shows where it came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onevision.concepts.balance.build import build_balance
from onevision.concepts.build import build_concepts
from onevision.concepts.vocabulary import build_vocabulary
from onevision.files import read_json, write_json
from onevision.packing.build import build_packs
from onevision.recipe import ConceptRecipe, Recipe, load_recipe, save_recipe
from onevision.report.report import write_report
from onevision.report.results import ABSENT, PipelineFolders, read_results
from onevision.report.summary import total_seconds
from onevision.report.tables import category_table, lineage


def select(folders: PipelineFolders, samples: int) -> Recipe:
    """Draw and pack a selection of the pipeline's corpus, and let stage 1.5 have read it; returns its recipe."""
    root, run = folders.root, folders.stages["stage1_5"]
    inputs = read_json(folders.corpus / "step.json")["inputs"]
    recipe = load_recipe(run / "recipe.yaml")
    data = replace(
        recipe.data,
        corpus=str(folders.corpus),
        balanced=str(root / "balanced"),
        packs=str(root / "balanced-packs"),
        tokenizer=str(root / "tokenizer"),
        sequence_length=512,
        max_pixels=inputs["max_pixels"],
    )
    concepts = ConceptRecipe(
        vocabulary=str(root / "vocabulary"),
        words="corpus",
        min_word_count=1,
        match="substring",
        index=str(root / "concepts"),
        samples=samples,
    )
    recipe = replace(recipe, data=data, concepts=concepts)
    build_vocabulary(recipe, concepts.vocabulary)
    build_concepts(recipe, concepts.index)
    chosen = build_balance(recipe, data.balanced)
    packs = build_packs(replace(data, corpus=data.balanced), data.packs)
    save_recipe(recipe, run / "recipe.yaml")
    found = {"packs": packs.summary["fingerprint"], "corpus": chosen.summary["fingerprint"]}
    write_json(run / "lineage.json", {**read_json(run / "lineage.json"), "inputs": found})
    return recipe


def test_a_selection_is_no_contradiction(copied: PipelineFolders) -> None:
    select(copied, samples=30)
    results = read_results(copied)
    assert results.notes == []
    assert sum(row["selected"] for row in category_table(results)) == 30
    steps = {row.step: row for row in lineage(results)}
    assert steps["Balanced selection"].made_from.startswith(f"corpus {results.corpus['summary']['fingerprint'][:12]}")
    assert steps["Packs of it"].made_from == f"selection {results.selection['summary']['fingerprint'][:12]}"
    assert "Balanced selection" in Path(write_report(copied)).read_text("utf-8")


def test_a_selection_that_is_another_one_now_is_noted(copied: PipelineFolders) -> None:
    recipe = select(copied, samples=30)
    other = replace(recipe, concepts=replace(recipe.concepts, seed=1))
    build_balance(other, other.data.balanced)
    assert [note.partition(":")[0] for note in read_results(copied).notes] == ["stage1_5"]
    assert "other samples" in read_results(copied).notes[0]


def test_the_report_of_the_run_alone(copied: PipelineFolders) -> None:
    recipe = select(copied, samples=30)
    stages = {"stage1_5": copied.stages["stage1_5"]}
    alone = replace(copied, packs=Path(recipe.data.packs), stages=stages, before=ABSENT, after=ABSENT)
    results = read_results(alone)
    assert results.notes == [f"evaluation {name} training: there is none" for name in ("before", "after")]
    assert [row.step for row in lineage(results)].count("Packs of it") == 0
    steps = (results.corpus, results.heldout, results.packs, results.selection, results.stages[0].summary)
    assert total_seconds(results) == pytest.approx(sum(step["seconds"] for step in steps))
