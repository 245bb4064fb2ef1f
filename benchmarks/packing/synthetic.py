"""A synthetic corpus of any size, only its lengths: columns in `lengths.h5`, shaped like the published histogram.

Of 5.52 million samples of stage 1.5, 4,127,403 have fewer than 1,024 tokens, 1,085,218 fewer than 2,048 and 308,112
more; the shortest has 36, the longest 8,187. Within these ranges the shape is assumed: log-normal, uniform and
exponential. So is the share of image tokens: Beta(4, 2), one sample in twenty without images, and no more than an image
of 1600 x 1600 pixels has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from onevision.corpus.hdf5 import Column, mapped

SHORT, MIDDLE, LONG = 4_127_403, 1_085_218, 308_112
SHORTEST, LONGEST = 36, 8187
MOST_VISION = 3265  # tokens of an image of 1600 x 1600 pixels
FILE = "lengths.h5"
CHUNK = 1_000_000  # rows that are drawn at a time
COLUMNS = {"text_tokens": "<i4", "vision_tokens": "<i4", "category": "<i2", "language": "<i2", "source": "<i2"}
SOURCES = tuple(f"source-{number}" for number in range(8))
CATEGORIES = tuple(f"category-{number}" for number in range(6))
LANGUAGES = ("en", "zh")


def draw(samples: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens and image tokens of `samples` samples."""
    random = np.random.default_rng(seed)
    kind = random.choice(3, samples, p=np.array([SHORT, MIDDLE, LONG]) / (SHORT + MIDDLE + LONG))
    shapes = [
        random.lognormal(5.9, 0.5, samples).clip(SHORTEST, 1023),
        random.integers(1024, 2048, samples),
        (2048 + random.exponential(900, samples)).clip(2048, LONGEST),
    ]
    lengths = np.choose(kind, shapes).astype(np.int32)
    share = np.where(random.random(samples) < 0.05, 0.0, random.beta(4, 2, samples))
    return lengths, np.minimum(lengths * share, MOST_VISION).astype(np.int32)


def write(folder: Path, samples: int, seed: int = 0) -> None:
    """Write `lengths.h5` into a folder. Sources are blocks of neighbouring rows; categories are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / FILE, "w", libver=("v110", "v110")) as file:
        columns = {name: file.create_dataset(name, (samples,), kind) for name, kind in COLUMNS.items()}
        for first in range(0, samples, CHUNK):
            rows = np.arange(first, min(first + CHUNK, samples))
            random = np.random.default_rng([seed, first])
            lengths, vision = draw(len(rows), random.integers(2**32))
            values: dict[str, Any] = {"text_tokens": lengths - vision, "vision_tokens": vision}
            values["source"] = rows * len(SOURCES) // samples
            values["category"] = random.integers(len(CATEGORIES), size=len(rows))
            values["language"] = random.integers(len(LANGUAGES), size=len(rows))
            for name, column in columns.items():
                column[first : first + len(rows)] = values[name]


class _Numbered:
    """Ids that are row numbers."""

    def __getitem__(self, row: int) -> bytes:
        return b"%d" % row


@dataclass(frozen=True)
class Lengths:
    """An opened `lengths.h5`; to the pack step a corpus."""

    path: Path
    text_tokens: Column
    vision_tokens: Column
    category: Column
    language: Column
    source: Column
    id = _Numbered()
    categories = CATEGORIES
    languages = LANGUAGES
    sources = SOURCES

    def __len__(self) -> int:
        return len(self.text_tokens)

    @classmethod
    def open(cls, folder: Path) -> Lengths:
        """Open the file of a folder."""
        path = folder / FILE
        with h5py.File(path, "r") as file:
            return cls(path, **{name: Column([mapped(path, file[name])]) for name in COLUMNS})


def attributes(samples: int, sequence_length: int, **others: int) -> dict[str, str | int]:
    """What the packs of a synthetic corpus say they were made for."""
    own = {"corpus": f"synthetic {samples}", "tokenizer": "", "template": "", "min_pixels": 0, "max_pixels": 0}
    defaults = {"max_patches": 0, "max_attention_cost": 0, "seed": 0, "part_samples": 1_000_000}
    return {**own, "sequence_length": sequence_length, **defaults, **others}
