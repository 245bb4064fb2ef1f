"""Some samples with their images and concepts, so that a person can judge whether the concepts are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.index import DRAWN, BalanceIndex
from onevision.concepts.captions import caption
from onevision.concepts.index import ConceptIndex
from onevision.corpus.reader import CorpusReader, DamagedSample
from onevision.report.thumbnails import Picture, cut, picture

SHOWN = 30
PICTURES = 3  # of a sample
CONCEPTS = 10  # of a sample
CAPTION = 160  # characters


@dataclass(frozen=True)
class ShownSample:
    """One sample; `fate` and `weight` are None where nothing was drawn."""

    row: int
    id: str
    language: str
    source: str
    pictures: list[Picture]
    caption: str
    concepts: list[tuple[int, float]]  # numbers in the vocabulary and scores, the best first
    more: int  # concepts that are not shown
    weight: float | None
    fate: int | None
    damage: str  # why nothing can be shown of it; empty: it can


def choose_rows(parts: NDArray[np.int64], balance: BalanceIndex | None, seed: int, count: int = SHOWN) -> list[int]:
    """`count` rows drawn by `seed`: half of them samples that are in the selection, half samples that are not, as far
    as there are so many. Without a selection they are any. `parts` are the samples of each part by fate, [P, 4].
    """
    random = np.random.default_rng(seed)
    drawn, others = int(parts[:, DRAWN].sum()), int(np.delete(parts, DRAWN, axis=1).sum())
    wanted = min(drawn, max(count // 2, count - others))
    start = np.concatenate([[0], np.cumsum(parts.sum(axis=1))])
    rows: list[int] = []
    for inside, there, number in ((True, drawn, wanted), (False, others, min(others, count - wanted))):
        sizes = parts[:, DRAWN] if inside else parts.sum(axis=1) - parts[:, DRAWN]
        ends = np.cumsum(sizes)
        for place in np.sort(random.choice(there, number, replace=False)).tolist() if number else ():
            k = int(np.searchsorted(ends, place, side="right"))
            within = np.arange(int(start[k + 1] - start[k]))
            if balance is not None:
                fate = balance.fate[int(start[k]) : int(start[k + 1])]
                within = np.flatnonzero((fate == DRAWN) == inside)
            rows.append(int(start[k]) + int(within[place - int(ends[k] - sizes[k])]))
    return rows


def show_samples(
    rows: Sequence[int], index: ConceptIndex, corpus: CorpusReader, balance: BalanceIndex | None
) -> list[ShownSample]:
    """What there is to see of some rows.

    Raises:
        DataError: a shard is missing or cannot be read, or a part of the concept index is damaged.
    """
    return [_sample(row, _concepts(row, index), corpus, balance) for row in rows]


def _concepts(row: int, index: ConceptIndex) -> list[tuple[int, float]]:
    start = 0
    for k, piece in enumerate(index.matches.pieces):
        if row < start + len(piece):
            part = index.part(k)
            first = int(part.matches[: row - start].sum(dtype=np.int64))
            own = slice(first, first + int(part.matches[row - start]))
            return list(zip(part.concept[own].tolist(), part.score[own].tolist(), strict=True))
        start += len(piece)
    raise IndexError(f"row {row} of {start}")


def _sample(
    row: int, concepts: list[tuple[int, float]], corpus: CorpusReader, balance: BalanceIndex | None
) -> ShownSample:
    pictures: list[Picture] = []
    text = damage = ""
    try:
        record = corpus.record(row)
        pictures = [shown for image in record.images[:PICTURES] if (shown := picture(image))]
        text = cut(caption(record), CAPTION)
    except DamagedSample as error:
        damage = error.detail
    index = corpus.index
    return ShownSample(
        row,
        corpus.id(row),
        index.languages[index.language[row]],
        index.sources[index.source[row]],
        pictures,
        text,
        concepts[:CONCEPTS],
        max(0, len(concepts) - CONCEPTS),
        float(balance.weight[row]) if balance else None,
        int(balance.fate[row]) if balance else None,
        damage,
    )
