"""A small corpus, vocabularies of it, and the recipe that joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from onevision.concepts.encoders import load_encoder
from onevision.concepts.vocabulary import write_vocabulary
from onevision.corpus.build import build_corpus
from onevision.corpus.record import Message, Part, Record
from onevision.recipe import Recipe, recipe_from
from tests.fixtures import image_bytes, tiny_tokenizer, write_records

NAMES = ["red apple", "apple", "sea lion", "lion", "bicycle", "castle", "violin", "苹果", "mountain", "lighthouse"]
CAPTIONS = [
    "A red apple.",
    "Two sea lions on a rock",
    "a LION, and a castle",
    "一个苹果。",
    "She plays the violin",
    "A bicycle leans against a lighthouse.",
    "nothing that has a name here",
]
SHARD = 5  # samples


def record(i: int, images: int = 1) -> Record:
    """The i-th record: its caption is one of `CAPTIONS` in turn."""
    question = (*[Part("image")] * images, Part("text", "What does the picture show?"))
    messages = (Message("user", question), Message("assistant", (Part("text", CAPTIONS[i % len(CAPTIONS)]),)))
    pictures = tuple(image_bytes(40 + i, 50, seed=10 * i + k) for k in range(images))
    return Record(f"s{i}", pictures, messages, "things", "en", "made", "CC0-1.0")


def write_names(folder: Path, names: list[str], embedded: bool = True, **encoder: str) -> Path:
    """A vocabulary of some names, all from a list; `encoder` are keys of the recipe's section."""
    folder.mkdir(parents=True)
    provenance, frequency = np.full(len(names), 16, np.uint8), np.zeros(len(names), np.int64)
    if embedded:
        made_by = load_encoder(recipe_from({"concepts": encoder}).concepts)
        pieces, dimension, fingerprint = (
            [made_by.texts(names).astype(np.float16)],
            made_by.dimension,
            made_by.fingerprint,
        )
    else:
        pieces, dimension, fingerprint = [], 0, ""
    write_vocabulary(folder, names, provenance, frequency, pieces, dimension, fingerprint, ["{}"])
    return folder


def make_recipe(root: Path, records: Sequence[Record], **concepts: object) -> Recipe:
    """A recipe with a corpus of some records, and a vocabulary of `NAMES` unless another is given."""
    tiny_tokenizer(root / "tokenizer")
    data = {
        "source": str(write_records(root / "records", records)),
        "corpus": str(root / "corpus"),
        "tokenizer": str(root / "tokenizer"),
        "shard_samples": SHARD,
        "max_pixels": 20_000,
    }
    if "vocabulary" not in concepts:
        concepts["vocabulary"] = str(write_names(root / "vocabulary", NAMES, concepts.get("match") != "substring"))
    made = recipe_from({"data": data, "concepts": {"top_k": 3, "encoder_batch": 2, **concepts}})
    build_corpus(made.data, made.data.corpus, report=str)
    return made


def change(recipe: Recipe, **values: object) -> Recipe:
    """The recipe with other values: of `concepts`, or of `data` where that has such a key."""
    names = {field.name for field in fields(recipe.data)}
    data = {name: value for name, value in values.items() if name in names}
    concepts = {name: value for name, value in values.items() if name not in names}
    return replace(recipe, data=replace(recipe.data, **data), concepts=replace(recipe.concepts, **concepts))
