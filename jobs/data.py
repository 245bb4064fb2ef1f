"""The data jobs: records -> corpus -> packs. They need neither torch nor a GPU."""

from __future__ import annotations

from pathlib import Path

from jobs.arguments import recipe_of
from jobs.cluster import launch
from onevision.corpus.build import build_corpus
from onevision.errors import InputError
from onevision.packing.build import build_packs
from onevision.recipe import Recipe


def run_corpus(arguments: list[str]) -> int:
    """python -m jobs corpus RECIPE.yaml [key=value ...]

    Imports `data.source` (records.jsonl and images) into tar shards and corpus.h5 under `data.corpus`, with the lengths
    of every sample by `data.tokenizer`.
    """
    recipe = recipe_of(arguments, "corpus")
    output = _required(recipe.data.corpus, "data.corpus")
    launch("corpus", build_corpus, recipe.data, output, log_folder=output.parent / "log")
    return 0


def run_pack(arguments: list[str]) -> int:
    """python -m jobs pack RECIPE.yaml [key=value ...]

    Packs the samples of `data.corpus` into sequences of `data.sequence_length` tokens: packs.h5 under `data.packs`.
    """
    recipe = recipe_of(arguments, "pack")
    output = _required(recipe.data.packs, "data.packs")
    launch("pack", build_packs, recipe.data, output, log_folder=output.parent / "log")
    return 0


def build_data(recipe: Recipe, held_out: Recipe) -> None:
    """The corpus and packs of training and the corpus of evaluation, in one process."""
    build_corpus(recipe.data, Path(recipe.data.corpus))
    build_corpus(held_out.data, Path(held_out.data.corpus))
    build_packs(recipe.data, Path(recipe.data.packs))


def _required(folder: str, key: str) -> Path:
    if not folder:
        raise InputError(f"{key} is empty: name the folder to write with {key}=FOLDER")
    return Path(folder)
