"""The concept jobs: what they are asked, where they run, and their place in the pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cluster import parameters
from jobs.concepts import concept_work, run_balance, run_vocabulary, sample_count, vocabulary_problems
from jobs.pipeline import Step, pipeline_steps, refuse
from jobs.place import Place
from jobs.sites import Site
from onevision.errors import InputError
from onevision.recipe import ConceptRecipe, DataRecipe, Recipe, load_recipe

TINY, LARGE = Path("jobs/recipes/tiny"), Path("jobs/recipes/8b")
CLIP = ConceptRecipe(vocabulary="runs/vocabulary", index="runs/concepts", encoder="clip")
EXPORTED = {"exported": "weights"}


@pytest.mark.parametrize(
    ("text", "count"), [("85M", 85_000_000), ("2000000", 2_000_000), ("1.5k", 1500), ("1_000", 1000), ("2B", 2 * 10**9)]
)
def test_a_number_of_samples_may_have_a_suffix(text: str, count: int) -> None:
    assert sample_count(text) == count


@pytest.mark.parametrize("text", ["many", "85 M", "-3", "1.5", "0.0001K", "M"])
def test_what_is_no_number_of_samples_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a number of samples"):
        sample_count(text)
    with pytest.raises(InputError, match="is not a number of samples"):
        run_balance([str(TINY / "stage1_5.yaml"), f"samples={text}"])


def test_a_clip_model_gets_a_gpu_a_rank_and_nothing_else_does() -> None:
    site = Site(scheduler="slurm", gpus_per_node=8, partition="gpu", cpu_partition="cpu")
    recipe = Recipe(concepts=CLIP, data=DataRecipe(balanced="runs/balanced"))
    asked = parameters(concept_work("concepts", recipe, ranks=16, nodes=2), site)
    assert (asked["gpus_per_node"], asked["ntasks_per_node"], asked["partition"]) == (8, 8, "gpu")
    few = parameters(concept_work("vocabulary", recipe, ranks=4, nodes=2), site)
    assert few["gpus_per_node"] == 2
    for name, concepts in (("balance", CLIP), ("concepts", replace(CLIP, encoder="text"))):
        other = parameters(concept_work(name, replace(recipe, concepts=concepts), ranks=16, nodes=2), site)
        assert "gpus_per_node" not in other
        assert other["partition"] == "cpu"


def test_a_folder_that_is_not_named_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"data\.balanced is empty: name the folder to write with data\.balanced="):
        concept_work("balance", Recipe(concepts=CLIP))


def names(steps: list[Step]) -> dict[str, tuple[str, ...]]:
    return {step.work.name: step.after for step in steps}


def test_stage_1_5_waits_for_the_packs_of_its_selection() -> None:
    after = names(pipeline_steps(TINY, [], {}, nodes=1))
    assert after["vocabulary"] == ("corpus",)
    assert after["concepts"] == ("vocabulary",)
    assert after["balance"] == ("concepts",)
    assert after["pack"] == ("corpus",)
    assert after["pack.balanced-packs"] == ("balance",)
    assert after["stage1"] == ("pack", "init")
    assert after["stage1_5"] == ("pack.balanced-packs", "stage1")
    assert after["stage2"] == ("pack", "stage1_5")


def test_without_a_balanced_selection_there_are_no_concepts() -> None:
    after = names(pipeline_steps(TINY, ["data.balanced=", "data.packs=runs/demo/packs"], {}, nodes=1))
    assert not {"vocabulary", "concepts", "balance", "pack.balanced-packs"} & set(after)
    assert after["stage1_5"] == ("pack", "stage1")


def test_whatever_the_corpus_is_called_its_packs_wait_for_it() -> None:
    steps = pipeline_steps(TINY, ["data.corpus=runs/demo/photos"], {}, nodes=1)
    assert names(steps)["vocabulary"] == ("corpus.photos",)


def test_packs_of_different_corpora_are_refused() -> None:
    with pytest.raises(InputError, match=r"stage1 and stage1_5 read data\.packs=runs/demo/packs of different corpora"):
        pipeline_steps(TINY, ["data.packs=runs/demo/packs"], {}, nodes=1)


def test_sources_of_names_that_are_missing_are_refused_before_anything_is_queued(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    recipe = load_recipe(LARGE / "stage1_5.yaml", [f"concepts.wordnet={missing}", "concepts.weights="])
    problems = vocabulary_problems(recipe)
    assert problems[0] == f"concepts.wordnet={missing} does not exist (data.balanced= trains on the whole corpus)"
    keys = [problem.partition("=")[0] for problem in problems[1:-1]]
    assert keys == ["concepts.words", "concepts.bigrams", "concepts.titles"]
    assert "name the folder of a CLIP model" in problems[-1]
    assert vocabulary_problems(load_recipe(TINY / "stage1_5.yaml")) == []
    with pytest.raises(InputError) as refused:
        run_vocabulary([str(LARGE / "stage1_5.yaml"), f"concepts.wordnet={missing}", "concepts.weights="])
    assert str(refused.value).splitlines() == problems
    steps = pipeline_steps(LARGE, [], EXPORTED, nodes=1)
    with pytest.raises(InputError, match=r"vocabulary: concepts\.words=data/names/words\.tsv does not exist"):
        refuse([step for step in steps if step.names], Place(Site(scheduler="slurm")))
