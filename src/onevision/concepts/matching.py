"""The concepts of the samples of one part of a corpus: the nearest ones, or those that the caption names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.captions import caption
from onevision.concepts.encoders import Encoder
from onevision.concepts.index import MAX_MATCHES
from onevision.concepts.samples import Sample
from onevision.concepts.search import ConceptSearch
from onevision.concepts.search.stats import SearchStats
from onevision.concepts.substring import NameFinder
from onevision.data.image import ImageError
from onevision.errors import DataError

SEARCHED = 4096  # samples that are searched at once: the vocabulary is read from memory once for all of them


@dataclass(frozen=True)
class Matches:
    """The concepts of n samples as in a part of the index, the seconds of each kind of work, and what a search did."""

    matches: NDArray[np.uint16]  # [n]
    concept: NDArray[np.int32]  # [sum of matches]
    score: NDArray[np.float32]  # [same]
    embedding: NDArray[np.float16] | None  # [n, D]
    seconds: dict[str, float]
    search: SearchStats | None  # of these samples alone; None where nothing was searched


class Matcher(Protocol):
    """Takes the samples of a part batch by batch."""

    def add(self, samples: Sequence[Sample]) -> None:
        """Take the next samples; damaged ones get no concept. An image that cannot be decoded damages its sample."""
        ...

    def found(self) -> Matches:
        """The concepts of all samples that were taken."""
        ...


class NearestConcepts:
    """The `top_k` nearest concepts of a sample's embedding, which is rounded to 16 bits first: as it is stored. Those
    with a score below `min_score` are left out.
    """

    def __init__(self, encoder: Encoder, search: ConceptSearch, top_k: int, min_score: float) -> None:
        self._encoder, self._search, self._top_k, self._min_score = encoder, search, top_k, min_score
        self._embeddings = [np.empty((0, encoder.dimension), np.float16)]
        self._seconds = 0.0

    def add(self, samples: Sequence[Sample]) -> None:
        """See Matcher."""
        start = time.monotonic()
        whole = [number for number, sample in enumerate(samples) if not sample.damage]
        rows = np.zeros((len(samples), self._encoder.dimension), np.float32)
        rows[whole] = self._embed([samples[number] for number in whole])
        self._embeddings.append(rows.astype(np.float16))
        self._seconds += time.monotonic() - start

    def found(self) -> Matches:
        """See Matcher."""
        start, before = time.monotonic(), self._search.stats
        embedding = np.concatenate(self._embeddings)
        known = np.flatnonzero(embedding.any(axis=1))
        concept = np.empty((len(known), self._top_k), np.int32)
        score = np.empty((len(known), self._top_k), np.float32)
        for first in range(0, len(known), SEARCHED):
            part = slice(first, first + SEARCHED)
            concept[part], score[part] = self._search.top(embedding[known[part]].astype(np.float32), self._top_k)
        near = score >= self._min_score
        matches = np.zeros(len(embedding), np.uint16)
        matches[known] = near.sum(axis=1)
        seconds = {"encode": self._seconds, "search": time.monotonic() - start}
        stats = _since(before, self._search.stats)
        return Matches(matches, concept[near], score[near], embedding, seconds, stats)

    def _embed(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        records = [sample.record for sample in samples if sample.record is not None]
        try:
            return self._encoder.samples(records)
        except ImageError:
            pass  # it does not say which
        rows = np.zeros((len(records), self._encoder.dimension), np.float32)
        for number, (sample, record) in enumerate(zip(samples, records, strict=True)):
            try:
                rows[number] = self._encoder.samples([record])[0]
            except ImageError as error:
                sample.damage = str(error)
        return rows


class NamedConcepts:
    """The concepts whose name is in the caption: all of them, with score 1."""

    def __init__(self, finder: NameFinder) -> None:
        self._finder = finder
        self._found = [np.empty(0, np.int32)]
        self._matches: list[int] = []
        self._seconds = 0.0

    def add(self, samples: Sequence[Sample]) -> None:
        """See Matcher.

        Raises:
            DataError: a caption names more concepts than can be counted.
        """
        start = time.monotonic()
        for sample in samples:
            text = "" if sample.damage or sample.record is None else caption(sample.record)
            found = self._finder.find(text)
            if len(found) > MAX_MATCHES:
                raise DataError(f"row {sample.row}: its caption names {len(found)} concepts, at most {MAX_MATCHES}")
            self._found.append(found)
            self._matches.append(len(found))
        self._seconds += time.monotonic() - start

    def found(self) -> Matches:
        """See Matcher."""
        concept = np.concatenate(self._found)
        score = np.ones(len(concept), np.float32)
        return Matches(np.array(self._matches, np.uint16), concept, score, None, {"search": self._seconds}, None)


def _since(before: SearchStats, now: SearchStats) -> SearchStats:
    """What a search did in between."""
    earlier = asdict(before)
    counts = {name: value - earlier[name] for name, value in asdict(now).items() if isinstance(value, int)}
    return replace(now, **counts)
