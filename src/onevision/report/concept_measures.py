"""What the samples of a concept index say together: their groups, fates, weights and scores, read part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.index import BalanceIndex
from onevision.concepts.index import ConceptIndex
from onevision.corpus.index import CorpusIndex

KINDS = {"language": "languages", "source": "sources", "category": "categories"}
FATES = 4
WEIGHT_EDGES = np.array([step * 10.0**power for power in range(-12, 3) for step in (1, 2, 5)])
SCORE_EDGES = np.linspace(-1.0, 1.0, 201)  # cosines; a score of any other kind ends in the last bin


@dataclass(frozen=True)
class Scores:
    """Scores of the samples of L languages that have a concept, in the bins of `SCORE_EDGES`."""

    nearest: NDArray[np.int64]  # [L, bins], of the concept that comes first
    last: NDArray[np.int64]  # [L, bins], of the concept that comes last
    without: NDArray[np.int64]  # [L], samples that have none


@dataclass(frozen=True)
class Measures:
    """Counts of all samples. Without a selection every sample has fate 1, not drawn; without a corpus there is one
    language, and no group."""

    parts: NDArray[np.int64]  # [P, 4], samples of each part by their fate
    groups: dict[str, NDArray[np.int64]]  # of each of `KINDS`: [names, 4], samples by their fate
    weights: NDArray[np.int64]  # [bins of WEIGHT_EDGES, 2], samples that are no duplicates: all, and those drawn
    weightless: NDArray[np.int64]  # [2], the same of samples with a weight of 0, which have no concept
    scores: Scores


def measure(index: ConceptIndex, corpus: CorpusIndex | None, balance: BalanceIndex | None) -> Measures:
    """Read every part once; what is held of it is its counts. The three have the same samples in the same parts.

    Raises:
        DataError: a part of the concept index is damaged.
    """
    parts = np.zeros((index.parts, FATES), np.int64)
    groups = {name: np.zeros((len(getattr(corpus, names)), FATES), np.int64) for name, names in KINDS.items() if corpus}
    weights, weightless = np.zeros((len(WEIGHT_EDGES) - 1, 2), np.int64), np.zeros(2, np.int64)
    languages = len(corpus.languages) if corpus else 1
    nearest, last = (np.zeros((languages, len(SCORE_EDGES) - 1), np.int64) for _ in range(2))
    scores = Scores(nearest, last, np.zeros(languages, np.int64))
    start = 0
    for k in range(index.parts):
        part = index.part(k)
        rows = slice(start, start + len(part))
        start = rows.stop
        fate = balance.fate[rows] if balance else np.ones(len(part), np.uint8)
        parts[k] = np.bincount(fate, minlength=FATES)
        for name, counts in groups.items():
            counts += _crossed(getattr(corpus, name)[rows], fate, counts.shape)
        if balance:
            _add_weights(balance.weight[rows], fate, weights, weightless)
        language = corpus.language[rows] if corpus else np.zeros(len(part), np.int16)
        _add_scores(part.matches, part.score, language, scores)
    return Measures(parts, groups, weights, weightless, scores)


def _crossed(one: NDArray[np.integer], other: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """How often each pair of numbers occurs, i8 `shape`."""
    pairs = one.astype(np.int64) * shape[1] + other
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def _add_weights(
    weight: NDArray[np.float32], fate: NDArray[np.uint8], weights: NDArray[np.int64], weightless: NDArray[np.int64]
) -> None:
    kept = fate < 2
    for column, chosen in enumerate((kept, fate == 0)):
        found = weight[chosen]
        weightless[column] += np.count_nonzero(found == 0)
        weights[:, column] += np.bincount(_bin(found[found > 0], WEIGHT_EDGES), minlength=len(weights))


def _add_scores(
    matches: NDArray[np.uint16], score: NDArray[np.float32], language: NDArray[np.int16], scores: Scores
) -> None:
    ends = np.cumsum(matches, dtype=np.int64)
    some = matches > 0
    scores.without[:] += np.bincount(language[~some], minlength=len(scores.without))
    for counts, places in ((scores.nearest, ends - matches), (scores.last, ends - 1)):
        counts += _crossed(language[some], _bin(score[places[some]], SCORE_EDGES), counts.shape)


def _bin(values: NDArray[np.float32], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each value; what lies outside is in the first or the last one."""
    found: NDArray[np.int64] = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    return np.clip(found, 0, len(edges) - 2)
