"""The data jobs: records -> corpus -> packs. They need neither torch nor a GPU, and many ranks can share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jobs.arguments import parse
from jobs.cluster import Work
from jobs.numbers import whole
from jobs.place import place_of, start
from jobs.shared import as_rank
from onevision.corpus.build import build_corpus
from onevision.errors import InputError
from onevision.packing.build import build_packs
from onevision.recipe import DataRecipe, Recipe, load_recipe

# The folders that the steps write in this repository's recipes.
USUAL_FOLDERS = {
    "corpus": "corpus",
    "vocabulary": "vocabulary",
    "concepts": "concepts",
    "balance": "balanced",
    "pack": "packs",
}


def run_corpus(arguments: list[str]) -> int:
    """python -m jobs corpus RECIPE.yaml [ranks=N] [nodes=N] [key=value ...]

    Imports `data.source`, which looks like `data.format` (records, parquet, webdataset, llava-json), into tar shards
    and corpus.h5 under `data.corpus`, with the lengths of every sample by `data.tokenizer`. The result is the same for
    any number of ranks; a run that was interrupted goes on.
    """
    return _run("corpus", arguments)


def run_pack(arguments: list[str]) -> int:
    """python -m jobs pack RECIPE.yaml [ranks=N] [nodes=N] [key=value ...]

    Packs the samples of `data.balanced`, or where that is empty of `data.corpus`, into sequences of
    `data.sequence_length` tokens: packs.h5 under `data.packs`. The result is the same for any number of ranks; a run
    that was interrupted goes on.
    """
    return _run("pack", arguments)


def corpus_work(recipe: Recipe, output: Path, ranks: int = 1, nodes: int = 1) -> Work:
    """The corpus job."""
    return shared_work("corpus", build_corpus, recipe.data, output, ranks, nodes)


def pack_work(recipe: Recipe, output: Path, ranks: int = 1, nodes: int = 1) -> Work:
    """The pack job."""
    return shared_work("pack", build_packs, packed_data(recipe), output, ranks, nodes)


def packed_data(recipe: Recipe) -> DataRecipe:
    """What is packed: the balanced selection where there is one, else the corpus."""
    return replace(recipe.data, corpus=recipe.data.balanced or recipe.data.corpus)


def data_ranks(own: Mapping[str, str]) -> int:
    """The setting `ranks`: processes that share a data step.

    Raises:
        InputError: it is not a number from 1 on.
    """
    ranks = whole(own.get("ranks") or "1")
    if not ranks:
        raise InputError(f"ranks={own['ranks']} is not a number of processes, at least 1")
    return ranks


def _run(name: str, arguments: list[str]) -> int:
    path, overrides, own = parse(arguments, name, "recipe file", ("ranks",))
    recipe, place = load_recipe(path, overrides), place_of(own)
    if name == "corpus":
        work = corpus_work(recipe, required(recipe.data.corpus, "data.corpus"), data_ranks(own), place.nodes)
    else:
        work = pack_work(recipe, required(recipe.data.packs, "data.packs"), data_ranks(own), place.nodes)
    return start(work, place)


def shared_work(
    name: str,
    build: Callable[..., Any],
    settings: DataRecipe | Recipe,
    output: Path,
    ranks: int,
    nodes: int,
    needs: Literal["ranks", "gpu_ranks"] = "ranks",
) -> Work:
    """The job of a step that `ranks` share: `build(settings, output, ranks, report)`. It logs beside its output, and is
    named after it where that is not the step's usual folder: packs and other packs beside them are two jobs.

    Raises:
        InputError: the ranks cannot be spread over the nodes.
    """
    if ranks % nodes:
        raise InputError(f"ranks={ranks} cannot be spread evenly over nodes={nodes}")
    log_folder = output.parent / "log"
    if output.name not in ("", USUAL_FOLDERS[name]):
        name = f"{name}.{output.name}"
    return Work(name, as_rank, (build, settings, output), log_folder, needs=needs, nodes=nodes, ranks=ranks)


def required(folder: str, key: str) -> Path:
    """The folder that a step writes, which the recipe names under `key`.

    Raises:
        InputError: it is not named.
    """
    if not folder:
        raise InputError(f"{key} is empty: name the folder to write with {key}=FOLDER")
    return Path(folder)
