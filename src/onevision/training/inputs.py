"""What a run reads, opened and checked against each other before anything is built. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from onevision.corpus.index import CorpusIndex
from onevision.corpus.reader import CorpusReader
from onevision.data.sources import Source, Sources, by_source, entries_of
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import DataError, InputError, OneVisionError
from onevision.files import read_record
from onevision.model.presets import PRESETS
from onevision.packing.index import PackIndex, check_attributes, length_attributes, pack_attributes
from onevision.recipe import DataRecipe, Recipe
from onevision.training.checkpoint_files import check_architecture, checkpoint_steps, find, verify, verify_sizes

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """Tokenizer, corpora with their packs, and the checkpoint to start from, if any (its folder and content), with its
    fingerprint. Of a run that has begun, only the fingerprint may be left."""

    tokenizer: Tokenizer
    sources: Sources
    start_from: tuple[Path, dict[str, Any]] | None
    start_fingerprint: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the result depends on, beside the recipe."""
        opened = [(source.corpus.index, source.packs) for source in self.sources.sources]
        return fingerprints(self.tokenizer, opened, self.start_fingerprint)


@dataclass(frozen=True)
class Findings:
    """What `check_inputs` found: the problems, the fingerprints of what is in order, and those packs that are."""

    problems: list[str]
    fingerprints: dict[str, str]
    packs: list[PackIndex]


def input_paths(recipe: Recipe) -> dict[str, str]:
    """What a run reads: paths by the keys of the recipe that name them."""
    paths = {"data.tokenizer": recipe.data.tokenizer, "train.init_from": recipe.train.init_from}
    for number, entry in enumerate(entries_of(recipe.data)):
        paths |= {_key(recipe, number, "corpus"): entry.corpus, _key(recipe, number, "packs"): entry.packs}
    return paths


def parents(recipe: Recipe) -> dict[str, str]:
    """The folders that made a run's inputs, by the names of their fingerprints."""
    entries = entries_of(recipe.data)
    folders = {
        **by_source("packs", [entry.packs for entry in entries]),
        **by_source("corpus", [entry.corpus for entry in entries]),
    }
    return folders | ({"init_from": recipe.train.init_from} if recipe.train.init_from else {})


def open_inputs(recipe: Recipe) -> Inputs:
    """Open what the recipe names. Of the checkpoint to start from the content is not read: all ranks of a job do this,
    at every start; `verified_start` reads it, once.

    Raises:
        InputError: something is missing, or packs, corpus, tokenizer, start weights and model do not fit together.
        DataError: something is damaged.
    """
    tokenizer = model_tokenizer(recipe)
    sources = open_sources(recipe.data)
    sources.check(recipe.data, tokenizer)
    return Inputs(tokenizer, sources, *start_weights(recipe))


def open_sources(data: DataRecipe) -> Sources:
    """The corpora and packs of a recipe, opened.

    Raises:
        InputError, DataError: as `CorpusReader` and `PackIndex.open`.
    """
    return Sources(
        tuple(
            Source(entry, CorpusReader(entry.corpus, entry.shards), PackIndex.open(entry.packs))
            for entry in entries_of(data)
        )
    )


def check_inputs(recipe: Recipe, waits_for: Collection[str] = ()) -> Findings:
    """Everything that `open_inputs` would refuse, as far as it shows without reading what is large: shards, files of a
    checkpoint. `waits_for` names the keys (of `input_paths`) of inputs that do not exist yet and are not
    looked at.
    """
    problems: list[str] = []

    def attempt(call: Callable[[], T]) -> T | None:
        try:
            return call()
        except OneVisionError as error:
            problems.append(str(error))
            return None

    def opened(key: str, call: Callable[[], T]) -> T | None:
        return None if key in waits_for else attempt(call)

    data = recipe.data
    tokenizer = opened("data.tokenizer", lambda: model_tokenizer(recipe))
    found: list[tuple[CorpusIndex | None, PackIndex | None]] = []
    for number, entry in enumerate(entries_of(data)):
        corpus = opened(_key(recipe, number, "corpus"), partial(CorpusReader, entry.corpus, entry.shards))
        packs = opened(_key(recipe, number, "packs"), partial(PackIndex.open, entry.packs))
        found.append((None if corpus is None else corpus.index, packs))
        if tokenizer is not None and corpus is not None:
            checks: list[tuple[CorpusIndex | PackIndex, dict[str, str | int], str]]
            checks = [(corpus.index, length_attributes(data, tokenizer), "make corpus")]
            if packs is not None:
                checks.append((packs, pack_attributes(corpus.index, data, tokenizer), "make pack"))
            for index, attributes, command in checks:
                for name, value in attributes.items():
                    attempt(partial(check_attributes, index, {name: value}, command))
    weights = opened("train.init_from", lambda: start_weights(recipe))
    in_order = [packs for _, packs in found if packs is not None]
    return Findings(problems, fingerprints(tokenizer, found, weights[1] if weights else ""), in_order)


def _key(recipe: Recipe, number: int, name: str) -> str:
    return f"data.mixture[{number}].{name}" if recipe.data.mixture else f"data.{name}"


def model_tokenizer(recipe: Recipe) -> Tokenizer:
    """The recipe's tokenizer.

    Raises:
        InputError: it is missing, or has more tokens than the model.
    """
    architecture = PRESETS[recipe.model.preset]
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    if tokenizer.vocab_size > architecture.language.vocab_size:
        raise InputError(
            f"{tokenizer.path} has {tokenizer.vocab_size} tokens and model {architecture.name} has room for "
            f"{architecture.language.vocab_size}: use the tokenizer of the model, or another preset"
        )
    return tokenizer


def start_weights(recipe: Recipe) -> tuple[tuple[Path, dict[str, Any]] | None, str]:
    """The checkpoint that `train.init_from` names, if it names one, whole by the sizes of its files, and its
    fingerprint. A run that has checkpoints of its own does without: where it is gone, only the fingerprint is left.

    Raises:
        InputError: there is none, or it is of another model size.
        DataError: it is broken.
    """
    if not recipe.train.init_from:
        return None, ""
    try:
        found = find(recipe.train.init_from, verify_sizes)
    except OneVisionError:
        if recorded := _recorded_start(recipe):
            return None, recorded
        raise
    check_architecture(*found, PRESETS[recipe.model.preset])
    return found, found[1]["fingerprint"]


def verified_start(recipe: Recipe, folder: Path) -> None:
    """Read the checkpoint to start from, in `folder`, whole, and compare it with its digests.

    Raises:
        DataError: it is not as it was written.
    """
    try:
        verify(folder)
    except DataError as error:
        raise DataError(
            f"train.init_from={recipe.train.init_from}: {error}; bring it back, or name another checkpoint"
        ) from None


def _recorded_start(recipe: Recipe) -> str:
    """Fingerprint of the weights that a run began with, as it is known to one that has checkpoints of its own."""
    record = Path(recipe.output) / "run.json"
    if not recipe.output or not checkpoint_steps(recipe.output) or not record.exists():
        return ""
    return str(read_record(record, inputs=dict)["inputs"].get("init_from", ""))


def fingerprints(
    tokenizer: Tokenizer | None,
    sources: Sequence[tuple[CorpusIndex | None, PackIndex | None]],
    start: str,
) -> dict[str, str]:
    """Fingerprints of what there is, by name; `start` is that of the weights to start from."""
    found = {
        **by_source("packs", ["" if packs is None else packs.fingerprint for _, packs in sources]),
        **by_source("corpus", ["" if corpus is None else corpus.fingerprint for corpus, _ in sources]),
    }
    if tokenizer is not None:
        found["tokenizer"] = tokenizer.fingerprint
    if start:
        found["init_from"] = start
    return {name: fingerprint for name, fingerprint in found.items() if fingerprint}


def input_names(recipe: Recipe) -> set[str]:
    """The names that a run's fingerprints can have."""
    return {"tokenizer", "init_from", *parents(recipe)}
