"""Which samples a step is to train on, told from the pack indexes alone: no shard and no image is read.

The batch of a step is a pure function of packs, seed and step, whatever the number of ranks. So what a run has seen can
be held against what was planned: every row of metrics.jsonl has the digest of the ids that its step was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.data.mixture import Mixture
from onevision.data.sources import Sources


@dataclass(frozen=True)
class SamplePlace:
    """A sample as a person finds it: its id (of a mixture, after the folder of its corpus), shard and category."""

    id: str
    shard: str  # path or URL
    category: str


def mixture_of(sources: Sources, seed: int) -> Mixture:
    """The endless row of packs that training reads."""
    packs, rates = zip(*((source.packs.packs, source.rate) for source in sources.sources), strict=True)
    return Mixture(packs, rates, seed)


class Plan:
    """The sample ids of every step of a run."""

    def __init__(self, sources: Sources, seed: int, global_batch_size: int) -> None:
        self.sources, self.global_batch_size = sources, global_batch_size
        self._mixture = mixture_of(sources, seed)

    def samples(self, step: int) -> NDArray[np.int64]:
        """The ids of step `step`, counted from 1 as in metrics.jsonl; int64 [S], in ascending order. A sample that is
        in two packs of a step is there twice."""
        source, pack = self._mixture.at((step - 1) * self.global_batch_size, self.global_batch_size)
        first_row = self.sources.first_row
        ids = [
            int(first_row[number]) + row
            for number, own in zip(source.tolist(), pack.tolist(), strict=True)
            for row in self.sources.sources[number].packs.samples_of(own)
        ]
        return np.sort(np.array(ids, np.int64))


def digest(sample_ids: Sequence[int] | NDArray[np.int64]) -> str:
    """Digest of a multiset of sample ids: 64-bit xxh3 of their ascending little-endian int64 values, as 16 hexadecimal
    digits."""
    return xxhash.xxh3_64_hexdigest(np.sort(np.asarray(sample_ids, "<i8")).tobytes())


def place_of(sources: Sources, sample_id: int) -> SamplePlace:
    """Where a sample stands."""
    number = int(np.searchsorted(sources.first_row, sample_id, side="right")) - 1
    corpus = sources.sources[number].corpus
    entry = corpus.entries([sample_id - int(sources.first_row[number])])[0]
    category = corpus.index.categories[entry.category]
    return SamplePlace(sources.sample_name(sample_id), corpus.store.place(entry.shard), category)
