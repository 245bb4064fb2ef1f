"""A chain of real runs: random weights, a stage 1 on a corpus, a stage 2 on a selection of it, and a bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from jobs.convert import export_here
from onevision.concepts.balance.build import build_balance
from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.evaluation.accuracy import evaluate
from onevision.evaluation.harness.places import result_file, results_folder
from onevision.files import write_json
from onevision.packing.build import build_packs
from onevision.recipe import ConceptRecipe, Recipe, recipe_from
from onevision.release.bundle import Asked, Release, build_release
from onevision.training.loop import initialise, train
from tests.concepts.balance.common import CONCEPTS, concept_part, draw_concepts, write_index
from tests.fixtures import sample_record, tiny_tokenizer, write_records

TASK = {
    "task": "mmstar",
    "model": "onevision",
    "run": "run",
    "step": 4,
    "score": {"metric": "average", "percent": 41.25},
    "published": {"8b": {"percent": 67.7, "difference": -26.45}},
    "note": "",
    "problem": "",
    "answered": 1500,
    "failed": 2,
    "metrics": {"mmstar": {"average": 0.4125}},
    "limit": 0,
    "settings": {"max_pixels": 12544},
    "versions": {"lmms_eval": "0.7.3"},
}


@dataclass(frozen=True)
class Lab:
    """The folder of all runs, and their recipes."""

    root: Path
    stage0: Recipe
    stage1: Recipe
    stage2: Recipe

    @property
    def run(self) -> Path:
        """The run that is released."""
        return Path(self.stage2.output)

    def asked(self, step: int | None = None, shards: str = "auto", licence: str = "") -> Asked:
        """A release of it."""
        return Asked(self.stage2, self.run, step, shards, licence)

    def export(self, step: int, folder: Path) -> None:
        """What the job does where there is no export."""
        export_here(self.stage2, self.run, step, folder, parity="no")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """To be read only."""
    root = tmp_path_factory.mktemp("lab")
    tiny_tokenizer(root / "tokenizer")
    write_records(root / "source", [replace(sample_record(i), source=f"shop | <b>{i % 3}</b>") for i in range(40)])
    write_records(root / "questions", [sample_record(i) for i in range(100, 106)])
    data = {
        "source": str(root / "source"),
        "corpus": str(root / "corpus"),
        "packs": str(root / "packs"),
        "tokenizer": str(root / "tokenizer"),
        "sequence_length": 512,
        "max_pixels": 28 * 28 * 16,
        "shard_samples": 16,
        "workers": 0,
    }
    asked = {"corpus": str(root / "heldout"), "max_new_tokens": 2}

    def recipe(name: str, stage: str, **train: object) -> Recipe:
        return recipe_from(
            {
                "name": name,
                "stage": stage,
                "output": str(root / name),
                "model": {"preset": "tiny", "freeze": ["vision", "language"] if stage == "stage1" else []},
                "data": data,
                "optimizer": {"lr": 2e-3, "min_lr": 1e-4, "eps": 1e-8},
                "train": {"precision": "fp32", "global_batch_size": 1, "threads": 1, "peak_tflops": 1.0, **train},
                "checkpoint": {"interval": 2, "keep": 3, "asynchronous": False},
                "evaluation": asked,
            }
        )

    stage0, stage1 = recipe("start", "stage0"), recipe("first", "stage1", init_from=str(root / "start"), steps=2)
    quiet: Callable[[str], None] = lambda line: None  # noqa: E731
    build_corpus(stage1.data, root / "corpus", report=quiet)
    build_corpus(replace(stage1.data, source=str(root / "questions")), root / "heldout", report=quiet)
    build_packs(stage1.data, root / "packs", report=quiet)

    corpus = CorpusIndex.open(root / "corpus")
    edges = np.cumsum([0, *(len(piece) for piece in corpus.shard.pieces)]).tolist()
    lists = draw_concepts(len(corpus), CONCEPTS, seed=0)
    parts = [concept_part(lists[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    concepts = ConceptRecipe(index=str(write_index(root / "concepts", parts, corpus.fingerprint)), samples=30)
    last = replace(recipe("last", "stage2", init_from=str(root / "first"), steps=4), concepts=concepts)
    selected = replace(last.data, balanced=str(root / "balanced"), packs=str(root / "balanced-packs"))
    stage2 = replace(last, data=selected, description="Made to be | tested.")
    build_balance(stage2, root / "balanced", report=quiet)
    build_packs(replace(selected, corpus=selected.balanced), root / "balanced-packs", report=quiet)

    initialise(stage0)
    train(stage1)
    train(stage2)
    found = Lab(root, stage0, stage1, stage2)
    (found.run / "log").mkdir()
    (found.run / "log" / "last-20260101-000000.log").write_text("step 1\n")
    (found.run / "log" / "release-20260101-000000.log").write_text("no part of a release\n")
    write_json(result_file(results_folder(found.run, "onevision", 4), "mmstar"), TASK)
    evaluate(stage2, str(found.run), found.run / "evaluation")
    return found


@pytest.fixture(scope="session")
def released(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Its bundle; to be read only."""
    return build_release(lab.asked(), tmp_path_factory.mktemp("released") / "bundle", lab.export)


@pytest.fixture
def bundle(released: Release, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged; its weights are hard links, not to be written to."""
    return shutil.copytree(released.folder, tmp_path / "bundle", copy_function=_copy)


def _copy(source: str, target: str) -> object:
    return os.link(source, target) if source.endswith(".safetensors") else shutil.copy2(source, target)


@pytest.fixture
def moved(lab: Lab, tmp_path: Path) -> Lab:
    """The lab with a copy of the released run's folder, to be changed; what it read stays where it was."""
    shutil.copytree(lab.run, tmp_path / "last")
    return replace(lab, stage2=replace(lab.stage2, output=str(tmp_path / "last")))
