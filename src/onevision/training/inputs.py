"""What a run reads, opened and checked against each other before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.corpus.reader import CorpusReader
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import InputError
from onevision.model.presets import PRESETS
from onevision.packing.index import PackIndex
from onevision.recipe import Recipe
from onevision.training import checkpoint


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
        found = {
            "packs": self.packs.fingerprint,
            "corpus": self.corpus.index.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
        }
        return found | ({"init_from": self.start_from[1]["fingerprint"]} if self.start_from else {})


def open_inputs(recipe: Recipe) -> Inputs:
    """Open what the recipe names.

    Raises:
        InputError: something is missing, or packs, corpus, tokenizer, start weights and model do not fit together.
        DataError: something is damaged.
    """
    architecture = PRESETS[recipe.model.preset]
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    if tokenizer.vocab_size > architecture.language.vocab_size:
        raise InputError(
            f"{tokenizer.path} has {tokenizer.vocab_size} tokens and model {architecture.name} has room for "
            f"{architecture.language.vocab_size}: use the tokenizer of the model, or another preset"
        )
    if recipe.data.sequence_length > architecture.language.max_position_embeddings:
        raise InputError(
            f"data.sequence_length={recipe.data.sequence_length} is above the {architecture.name} model's "
            f"{architecture.language.max_position_embeddings} positions"
        )
    layers = {"vision": architecture.vision.num_layers, "language": architecture.language.num_layers}
    if recipe.model.recompute == "full" and any(count % recipe.model.recompute_layers for count in layers.values()):
        raise InputError(
            f"model.recompute_layers={recipe.model.recompute_layers} does not divide the layers of the "
            f"{architecture.name} model: {layers['vision']} in vision, {layers['language']} in language"
        )
    corpus, packs = CorpusReader(recipe.data.corpus), PackIndex.open(recipe.data.packs)
    packs.check_against(corpus.index, recipe.data, tokenizer)
    start_from = checkpoint.find(recipe.train.init_from) if recipe.train.init_from else None
    if start_from is not None:
        checkpoint.check_architecture(*start_from, architecture)
    return Inputs(tokenizer, corpus, packs, start_from)
