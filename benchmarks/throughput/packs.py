"""Packs with the published statistics, made on the fly and the same each time: for machines without the corpus.

Every sample is an image and a text. What is known of the released data is little: 85 million samples have 64 billion
tokens (753 a sample), and a pack of 8,192 about nine samples. What is not known stands here as assumed. The text is
random tokens and the images are noise: the work is that of real data, what is learned is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from onevision.data.batch import PackedBatch
from onevision.model.presets import PATCH_VALUES, SPATIAL_MERGE_SIZE
from onevision.planning.published import IMAGE_SHARE, SAMPLE_TOKENS

_MERGE = SPATIAL_MERGE_SIZE**2


@dataclass(frozen=True)
class Statistics:
    """The mean sample of a stage, how far samples lie apart, and how full packs are."""

    tokens: float
    image_share: float  # of the tokens
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
TEXT = Statistics(753, 0.0, 0.35, 1.0, "text alone, samples of the published length")


def synthetic_batch(
    statistics: Statistics, *, sequence_length: int, packs: int, vocab_size: int, seed: int
) -> PackedBatch:
    """A micro-batch of `packs` packs. Samples longer than a quarter of a pack are cut to it."""
    random = np.random.default_rng(seed)
    filled = int(statistics.fill * sequence_length)
    lengths: list[int] = []
    starts: list[int] = []
    grids: list[tuple[int, int]] = []
    slots: list[NDArray[np.int64]] = []
    for pack in range(packs):
        used = 0
        while used < filled:
            wanted = statistics.tokens * np.exp(statistics.spread * random.standard_normal() - statistics.spread**2 / 2)
            length = int(min(max(wanted, 8), sequence_length / 4, filled - used))
            if filled - used - length < 8:
                length = filled - used
            start = pack * sequence_length + used
            if statistics.image_share and length >= 8:
                grid = _grid(statistics.image_share * length, random)
                image = grid[0] * grid[1] // _MERGE
                grids.append(grid)
                slots.append(np.arange(start + 1, start + 1 + image))
            lengths.append(length)
            starts.append(start)
            used += length
    total = packs * sequence_length
    start, size = np.array(starts), np.array(lengths)
    bounds = np.append(start, total)
    image_slots = np.concatenate(slots) if slots else np.zeros(0, np.int64)
    tokens = random.integers(0, vocab_size, total)
    learned = np.zeros(total + 1, bool)
    for first, length in zip(starts, lengths, strict=True):
        learned[first + 1 : first + length] = True
    learned[image_slots] = False
    mask = learned[1:]
    labels = np.where(mask, np.roll(tokens, -1), 0)
    patches = random.random((len(image_slots) * _MERGE, PATCH_VALUES), np.float32) * 2 - 1
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        loss_mask=torch.from_numpy(mask.astype(np.float32)),
        target_rows=torch.from_numpy(np.flatnonzero(mask)),
        position_ids=torch.from_numpy(np.arange(total) - np.repeat(start, np.diff(bounds))),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        patches=torch.from_numpy(patches),
        grid_thw=torch.from_numpy(np.array([(1, *grid) for grid in grids], np.int64).reshape(-1, 3)),
        image_slots=torch.from_numpy(image_slots),
        segment_category=torch.zeros(len(starts), dtype=torch.int64),
        sample_ids=torch.arange(len(starts)),
        sample_lengths=torch.from_numpy(size),
        real_tokens=int(size.sum()),
        skipped=0,
        notes=(),
    )


def _grid(image_tokens: float, random: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of patches, even, of an image with about so many tokens and sides as 2:3 to 3:2."""
    ratio = np.exp(random.uniform(-0.4, 0.4))
    rows = max(1, round(np.sqrt(image_tokens * ratio)))
    columns = max(1, int(image_tokens / rows))
    return rows * SPATIAL_MERGE_SIZE, columns * SPATIAL_MERGE_SIZE
