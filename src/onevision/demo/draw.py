"""One demo record in the making.

Its random numbers, language and wording are functions of (seed, split, category, index) alone, so that no
record depends on how many others are made.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash
from PIL import Image

from onevision.corpus.record import Message, Part, Record

JPEG_QUALITY = 92
SOURCES = "; "  # between the sources of one record
LICENSES = " AND "  # between its licences, as in SPDX expressions
CHINESE_SHARE = 0.25
# Shares of conversations about one, two and three things.
TRAIN_ITEMS = (0.2, 0.3, 0.5)
HELDOUT_ITEMS = (0.8, 0.15, 0.05)

Phrases = Mapping[str, Sequence[str]]  # language -> wordings that ask the same


class Origin(NamedTuple):
    """Where a part of a sample comes from. `license` is an SPDX identifier, or LicenseRef-public-domain."""

    source: str
    license: str


class Turn(NamedTuple):
    """One question, with the encoded images that come with it, and its one right answer."""

    images: tuple[bytes, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Draw:
    """Names one record; everything random about it comes from here."""

    category: str
    split: str  # train, heldout
    index: int
    seed: int

    @property
    def id(self) -> str:
        return f"{self.split}-{self.category}-{self.index:06d}"

    @property
    def heldout(self) -> bool:
        return self.split == "heldout"

    @property
    def language(self) -> str:
        return "zh" if self._hash("language") % 1000 < 1000 * CHINESE_SHARE else "en"

    def rng(self) -> np.random.Generator:
        """A fresh generator; the same numbers on every call."""
        return np.random.default_rng(self._hash("rng"))

    def items(self) -> list[int]:
        """Numbers of the one to three things a conversation is about; what they choose is evenly spread.

        The first is the record's index, the others are random, so that no answer gives the next one away.
        Training conversations are about more things: fewer tokens an answer.
        """
        rng = np.random.default_rng(self._hash("items"))
        count = rng.choice((1, 2, 3), p=HELDOUT_ITEMS if self.heldout else TRAIN_ITEMS)
        return [self.index, *map(int, rng.integers(1 << 32, size=count - 1))]

    def phrase(self, phrases: Phrases) -> str:
        """One of the wordings in the record's language."""
        wordings = phrases[self.language]
        return wordings[self._hash("phrase", *wordings) % len(wordings)]

    def record(self, turns: Sequence[Turn], origins: Sequence[Origin]) -> Record:
        """The record of these turns: the images of a turn stand before its question."""
        messages = []
        for turn in turns:
            content = (*(Part("image") for _ in turn.images), Part("text", turn.question))
            messages += [Message("user", content), Message("assistant", (Part("text", turn.answer),))]
        return Record(
            id=self.id,
            images=tuple(image for turn in turns for image in turn.images),
            messages=tuple(messages),
            category=self.category,
            language=self.language,
            source=SOURCES.join(sorted({origin.source for origin in origins})),
            license=LICENSES.join(sorted({origin.license for origin in origins})),
        )

    def _hash(self, *purpose: str) -> int:
        return stable_hash(self.seed, self.id, *purpose)


def stable_hash(*values: object) -> int:
    """64-bit hash of the values' text, the same in every process."""
    return xxhash.xxh3_64_intdigest("\x1f".join(map(str, values)).encode())


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def jpeg(image: Image.Image) -> bytes:
    """The image as JPEG bytes of fixed quality, without chroma subsampling."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
