"""The data jobs: records -> corpus -> packs. They need neither torch nor a GPU, and many ranks can share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.arguments import parse
from jobs.cluster import Work
from jobs.place import place_of, start
from jobs.shared import as_rank
from onevision.corpus.build import build_corpus
from onevision.errors import InputError
from onevision.packing.build import build_packs
from onevision.recipe import Recipe, load_recipe


def run_corpus(arguments: list[str]) -> int:
    """python -m jobs corpus RECIPE.yaml [ranks=N] [nodes=N] [key=value ...]

    Imports `data.source`, which looks like `data.format` (records, parquet, webdataset, llava-json), into tar shards
    and corpus.h5 under `data.corpus`, with the lengths of every sample by `data.tokenizer`. The result is the same for
    any number of ranks; a run that was interrupted goes on.
    """
    return _run("corpus", arguments)


def run_pack(arguments: list[str]) -> int:
    """python -m jobs pack RECIPE.yaml [ranks=N] [nodes=N] [key=value ...]

    Packs the samples of `data.corpus` into sequences of `data.sequence_length` tokens: packs.h5 under `data.packs`. The
    result is the same for any number of ranks; a run that was interrupted goes on.
    """
    return _run("pack", arguments)


def corpus_work(recipe: Recipe, output: Path, ranks: int = 1, nodes: int = 1) -> Work:
    """The corpus job."""
    return _work("corpus", build_corpus, recipe, output, ranks, nodes)


def pack_work(recipe: Recipe, output: Path, ranks: int = 1, nodes: int = 1) -> Work:
    """The pack job."""
    return _work("pack", build_packs, recipe, output, ranks, nodes)


def data_ranks(own: Mapping[str, str]) -> int:
    """The setting `ranks`: processes that share a data step.

    Raises:
        InputError: it is not a number from 1 on.
    """
    ranks = own.get("ranks") or "1"
    if not ranks.isdigit() or int(ranks) < 1:
        raise InputError(f"ranks={ranks} is not a number of processes, at least 1")
    return int(ranks)


def _run(name: str, arguments: list[str]) -> int:
    path, overrides, own = parse(arguments, name, "recipe file", ("ranks",))
    recipe, place = load_recipe(path, overrides), place_of(own)
    if name == "corpus":
        work = corpus_work(recipe, _required(recipe.data.corpus, "data.corpus"), data_ranks(own), place.nodes)
    else:
        work = pack_work(recipe, _required(recipe.data.packs, "data.packs"), data_ranks(own), place.nodes)
    return start(work, place)


def _work(name: str, build: Callable[..., Any], recipe: Recipe, output: Path, ranks: int, nodes: int) -> Work:
    if ranks % nodes:
        raise InputError(f"ranks={ranks} cannot be spread evenly over nodes={nodes}")
    log_folder = output.parent / "log"
    return Work(name, as_rank, (build, recipe.data, output), log_folder, needs="ranks", nodes=nodes, ranks=ranks)


def _required(folder: str, key: str) -> Path:
    if not folder:
        raise InputError(f"{key} is empty: name the folder to write with {key}=FOLDER")
    return Path(folder)
