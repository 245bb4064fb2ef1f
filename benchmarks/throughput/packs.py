"""Packs with the published statistics, made on the fly and the same each time: for machines without the corpus.

Every sample is an image and a text. What is known of the released data is little: 85 million samples have 64 billion
tokens (753 a sample), and a pack of 8,192 about nine samples. What is not known stands here as assumed. The text is
random tokens and the images are noise: the work is that of real data, what is learned is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from onevision.data.batch import BatchLayout, Outline, PackedBatch
from onevision.data.tokenizer import Tokenizer
from onevision.model.presets import PATCH_VALUES, SPATIAL_MERGE_SIZE
from onevision.planning.published import IMAGE_SHARE, SAMPLE_TOKENS

_MERGE = SPATIAL_MERGE_SIZE**2
_LEAST = 16  # tokens a sample


@dataclass(frozen=True)
class Statistics:
    """The mean sample of a stage, how far samples lie apart, and how full packs are."""

    tokens: float
    image_share: float  # of the tokens; 0: no images
    spread: float  # standard deviation of the logarithm of a sample's tokens
    fill: float  # of a pack's slots
    source: str


STAGES: Mapping[str, Statistics] = {
    "stage1": Statistics(250, 0.7, 0.3, 0.95, "assumed: small images with captions of a sentence"),
    "stage1_5": Statistics(
        SAMPLE_TOKENS, IMAGE_SHARE, 0.35, 0.93, "753 tokens a sample published; 75 % image, fill and spread assumed"
    ),
    "stage2": Statistics(900, 0.6, 0.6, 0.93, "assumed: images with several turns of text"),
}
TEXT = Statistics(SAMPLE_TOKENS, 0.0, 0.35, 1.0, "text alone, samples of the published length")


@dataclass(frozen=True)
class SpecialTokens:
    """What a batch needs of a tokenizer: the last two ids of the model's vocabulary stand for both."""

    image_pad: int
    endoftext: int


def synthetic_batch(
    statistics: Statistics, *, sequence_length: int, packs: int, vocab_size: int, seed: int
) -> PackedBatch:
    """A micro-batch of `packs` packs. Samples longer than a quarter of a pack are cut to it."""
    random = np.random.default_rng(seed)
    special = SpecialTokens(vocab_size - 2, vocab_size - 1)
    outlines = [_outlines(statistics, sequence_length, random) for _ in range(packs)]
    layout = BatchLayout(outlines, sequence_length, cast(Tokenizer, special))
    for sample, room in zip(layout.samples, layout.rooms, strict=True):
        image = slice(1, 1 + sample.patches // _MERGE)
        room.ids[:] = random.integers(0, vocab_size - 2, sample.length)
        room.ids[image] = special.image_pad
        room.target[:] = True
        room.target[image] = False
    count = sum(sample.patches for sample in layout.samples)
    patches = random.random((count, PATCH_VALUES), np.float32) * 2 - 1
    return layout.finish(torch.from_numpy(patches))


def _outlines(statistics: Statistics, sequence_length: int, random: np.random.Generator) -> list[Outline]:
    samples: list[Outline] = []
    left = int(statistics.fill * sequence_length)
    while left:
        drawn = statistics.tokens * np.exp(statistics.spread * random.standard_normal() - statistics.spread**2 / 2)
        length = int(min(max(drawn, _LEAST), max(sequence_length / 4, _LEAST), left))
        if left - length < _LEAST:
            length = left
        left -= length
        grids = (_grid(statistics.image_share * length, random),) if statistics.image_share else ()
        samples.append(Outline(sample_id=len(samples), category=0, length=length, grids=grids))
    return samples


def _grid(image_tokens: float, random: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of patches, even, of an image with about so many tokens and sides as 2:3 to 3:2."""
    ratio = np.exp(random.uniform(-0.4, 0.4))
    rows = max(1, round(np.sqrt(image_tokens * ratio)))
    columns = max(1, int(image_tokens / rows))
    return rows * SPATIAL_MERGE_SIZE, columns * SPATIAL_MERGE_SIZE
