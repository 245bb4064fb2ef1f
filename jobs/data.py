"""The data jobs: records -> corpus -> packs. They need neither torch nor a GPU."""

from __future__ import annotations

from pathlib import Path

from jobs.arguments import recipe_of
from jobs.cluster import Work
from jobs.place import start
from onevision.corpus.build import build_corpus
from onevision.errors import InputError
from onevision.packing.build import build_packs
from onevision.recipe import Recipe


def run_corpus(arguments: list[str]) -> int:
    """python -m jobs corpus RECIPE.yaml [key=value ...]

    Imports `data.source`, which looks like `data.format` (records, parquet, webdataset, llava-json), into tar shards
    and corpus.h5 under `data.corpus`, with the lengths of every sample by `data.tokenizer`.
    """
    recipe, place = recipe_of(arguments, "corpus")
    output = _required(recipe.data.corpus, "data.corpus")
    return start(corpus_work(recipe, output), place)


def run_pack(arguments: list[str]) -> int:
    """python -m jobs pack RECIPE.yaml [key=value ...]

    Packs the samples of `data.corpus` into sequences of `data.sequence_length` tokens: packs.h5 under `data.packs`.
    """
    recipe, place = recipe_of(arguments, "pack")
    output = _required(recipe.data.packs, "data.packs")
    return start(pack_work(recipe, output), place)


def corpus_work(recipe: Recipe, output: Path) -> Work:
    """The corpus job."""
    return Work("corpus", build_corpus, (recipe.data, output), log_folder=output.parent / "log")


def pack_work(recipe: Recipe, output: Path) -> Work:
    """The pack job."""
    return Work("pack", build_packs, (recipe.data, output), log_folder=output.parent / "log")


def _required(folder: str, key: str) -> Path:
    if not folder:
        raise InputError(f"{key} is empty: name the folder to write with {key}=FOLDER")
    return Path(folder)
