"""What a run reads, opened and checked against each other before anything is built. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from onevision.corpus.index import CorpusIndex
from onevision.corpus.reader import CorpusReader
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import InputError, OneVisionError
from onevision.model.presets import PRESETS
from onevision.packing.index import PackIndex, check_attributes, length_attributes, pack_attributes
from onevision.recipe import Recipe
from onevision.training.checkpoint_files import check_architecture, find, verify, verify_sizes

INPUT_NAMES = frozenset(("packs", "corpus", "tokenizer", "init_from"))  # keys of the fingerprints
T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """Tokenizer, corpus, packs and the checkpoint to start from, if any (its folder and content)."""

    tokenizer: Tokenizer
    corpus: CorpusReader
    packs: PackIndex
    start_from: tuple[Path, dict[str, Any]] | None

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the result depends on, beside the recipe."""
        return fingerprints(self.tokenizer, self.corpus, self.packs, self.start_from)


@dataclass(frozen=True)
class Findings:
    """What `check_inputs` found: the problems, the fingerprints of what is in order, the packs if they are."""

    problems: list[str]
    fingerprints: dict[str, str]
    packs: PackIndex | None


def open_inputs(recipe: Recipe) -> Inputs:
    """Open what the recipe names.

    Raises:
        InputError: something is missing, or packs, corpus, tokenizer, start weights and model do not fit together.
        DataError: something is damaged.
    """
    tokenizer = model_tokenizer(recipe)
    corpus, packs = CorpusReader(recipe.data.corpus), PackIndex.open(recipe.data.packs)
    packs.check_against(corpus.index, recipe.data, tokenizer)
    return Inputs(tokenizer, corpus, packs, start_checkpoint(recipe, verify) if recipe.train.init_from else None)


def check_inputs(recipe: Recipe, waits_for: Collection[str] = ()) -> Findings:
    """Everything that `open_inputs` would refuse, as far as it shows without reading what is large: columns of indexes,
    files of a checkpoint. `waits_for` names the keys of inputs that do not exist yet and are not looked at, of
    data.tokenizer, data.corpus, data.packs, train.init_from.
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
    corpus = opened("data.corpus", lambda: CorpusReader(data.corpus))
    packs = opened("data.packs", lambda: PackIndex.open(data.packs))
    if tokenizer is not None and corpus is not None:
        checks: list[tuple[CorpusIndex | PackIndex, dict[str, str | int], str]]
        checks = [(corpus.index, length_attributes(data, tokenizer), "make corpus")]
        checks += [(packs, pack_attributes(corpus.index, data, tokenizer), "make pack")] if packs is not None else []
        for index, attributes, command in checks:
            for name, value in attributes.items():
                attempt(partial(check_attributes, index, {name: value}, command))
    start_from = None
    if recipe.train.init_from:
        start_from = opened("train.init_from", lambda: start_checkpoint(recipe, verify_sizes))
    return Findings(problems, fingerprints(tokenizer, corpus, packs, start_from), packs)


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


def start_checkpoint(recipe: Recipe, check: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Folder and content of the checkpoint that `train.init_from` names and `check` accepts.

    Raises:
        InputError: there is none, or it is of another model size.
        DataError: it is broken.
    """
    found = find(recipe.train.init_from, check)
    check_architecture(*found, PRESETS[recipe.model.preset])
    return found


def fingerprints(
    tokenizer: Tokenizer | None,
    corpus: CorpusReader | None,
    packs: PackIndex | None,
    start_from: tuple[Path, dict[str, Any]] | None,
) -> dict[str, str]:
    """Fingerprints of what there is, by name."""
    found = {}
    if packs is not None:
        found["packs"] = packs.fingerprint
    if corpus is not None:
        found["corpus"] = corpus.index.fingerprint
    if tokenizer is not None:
        found["tokenizer"] = tokenizer.fingerprint
    if start_from is not None:
        found["init_from"] = start_from[1]["fingerprint"]
    return found
