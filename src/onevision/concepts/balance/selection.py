"""What is drawn from a corpus by the rarity of its concepts: counts, weights, keys, and the bounds of the draw.

Passes over the parts of the concept index, which ranks share; each rank keeps 11 bytes a sample of its own parts. What
the ranks exchange are counts of concepts and histograms of keys. With these, any rank can say what is drawn of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.draw import Bounds, Piece, available, lowest
from onevision.concepts.balance.index import DRAWN, NOT_DRAWN, SAME_EMBEDDING, SAME_IMAGES
from onevision.concepts.balance.keys import salt, sample_keys
from onevision.concepts.balance.quotas import Quotas, cell_targets
from onevision.concepts.balance.weights import concept_values, count_concepts, sample_weights
from onevision.errors import DataError, InputError
from onevision.progress import Progress
from onevision.ranks import Ranks
from onevision.recipe import ConceptRecipe

NONE = np.empty(0, np.int64)


class Matched(Protocol):
    """Samples with their concepts, part by part: `onevision.concepts.index.ConceptIndex`."""

    @property
    def concepts(self) -> int:
        """Concepts of the vocabulary."""

    def part(self, k: int) -> Any:
        """The part with `matches` and `concept`."""


@dataclass(frozen=True)
class Candidates:
    """The samples of a corpus that may be drawn."""

    index: Matched
    start: NDArray[np.int64]  # [P + 1]: part k has the rows start[k] to start[k + 1]
    ids: Callable[[int], NDArray[np.uint64]]  # the id hashes of a part
    language: NDArray[np.int16]  # [N], into `languages`
    source: NDArray[np.int16]  # [N], into `sources`
    languages: tuple[str, ...]
    sources: tuple[str, ...]
    same_images: NDArray[np.int64] = field(default_factory=lambda: NONE)  # rows that are left out, ascending
    same_embedding: NDArray[np.int64] = field(default_factory=lambda: NONE)

    @property
    def parts(self) -> int:
        """How many there are."""
        return len(self.start) - 1

    def rows(self, k: int) -> slice:
        """The rows of part k."""
        return slice(int(self.start[k]), int(self.start[k + 1]))

    def fate(self, k: int) -> NDArray[np.uint8]:
        """What is known of part k before the draw: duplicates, all others are not drawn."""
        rows = self.rows(k)
        fate = np.full(rows.stop - rows.start, NOT_DRAWN, np.uint8)
        for out, kind in ((self.same_embedding, SAME_EMBEDDING), (self.same_images, SAME_IMAGES)):
            first, last = np.searchsorted(out, [rows.start, rows.stop])
            fate[out[first:last] - rows.start] = kind
        return fate


class Selection:
    """A draw of `concepts.samples` samples; every rank makes it, and it is the same for any number of ranks.

    Raises:
        InputError: more samples are asked for than there are.
        DataError: nothing is drawn.
    """

    def __init__(self, candidates: Candidates, concepts: ConceptRecipe, quotas: Quotas, ranks: Ranks) -> None:
        self.candidates, self._concepts, self._quotas, self._ranks = candidates, concepts, quotas, ranks
        self._coins = concepts.weighting == "metaclip" and not concepts.samples
        self._salt, self._random = salt("balance", concepts.seed), salt("random", concepts.seed)
        self.count_before = self._count("counts", lambda k: candidates.fate(k) == NOT_DRAWN)
        self._value = concept_values(self.count_before, concepts.weighting, concepts.threshold)
        pieces = [self._piece(k) for k in self._own("weights and keys")]
        self.available = available(pieces, quotas.cells, ranks)
        self.samples = int(self.available.sum())
        self._bounds = self._draw(pieces)
        drawn = {piece.part: self._bounds.drawn(piece, candidates.ids(piece.part)) for piece in pieces}
        self.count_after = self._count("counts of what is drawn", drawn.__getitem__)
        self.cells = self._cells(pieces, drawn)
        del pieces, drawn
        self.drawn = int(self.cells.sum())
        if not self.drawn:
            raise DataError("no sample is drawn: every coin fell against it; raise concepts.threshold")
        self.count_random = self._draw_at_random()

    def part(self, k: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Weight f4 and fate u1 of the samples of part k."""
        fate, weight = self.candidates.fate(k), self._weights(k)
        weight[fate != NOT_DRAWN] = 0
        drawn = self._bounds.drawn(self._piece(k), self.candidates.ids(k))
        fate[drawn] = DRAWN
        return weight, fate

    def _draw(self, pieces: list[Piece]) -> Bounds:
        """The bounds of the draw."""
        samples, wanted, quotas = self.samples, self._concepts.samples, self._quotas
        if wanted > samples:
            out = int(self.candidates.start[-1]) - samples
            raise InputError(
                f"concepts.samples={wanted} are more than the corpus has: {samples}"
                + (f" without {out} duplicates" if out else "")
            )
        if self._coins:
            return Bounds.coins(quotas.cells)
        if not quotas:
            return lowest(pieces, self.candidates.ids, np.array([wanted or samples]), self._ranks)
        one_cell = [Piece(piece.part, piece.first_row, piece.key, np.zeros_like(piece.cell)) for piece in pieces]
        free = lowest(one_cell, self.candidates.ids, np.array([wanted]), self._ranks)
        drawn = {piece.part: free.drawn(piece, self.candidates.ids(piece.part)) for piece in one_cell}
        # One rank's floating point decides, should those of another one round differently.
        targets = self._ranks.first(cell_targets(quotas, wanted, self._cells(pieces, drawn), self.available))
        return lowest(pieces, self.candidates.ids, targets, self._ranks)

    def _draw_at_random(self) -> NDArray[np.int64]:
        """Samples with each concept, i8 [C], in a draw of as many samples without weights and quotas."""
        pieces = [self._uniform(k) for k in self._own("a random draw")]
        bounds = lowest(pieces, self.candidates.ids, np.array([self.drawn]), self._ranks)
        drawn = {piece.part: bounds.drawn(piece, self.candidates.ids(piece.part)) for piece in pieces}
        return self._count("counts of the random draw", drawn.__getitem__)

    def _own(self, name: str) -> Iterator[int]:
        """The parts of this rank, with a line of progress on rank 0."""
        parts, ranks = self.candidates.parts, self._ranks
        progress = Progress("balance", parts, f"parts, {name}") if ranks.rank == 0 else None
        for k in range(ranks.rank, parts, ranks.size):
            yield k
            if progress is not None:
                progress.advance(min(parts, k + ranks.size) - progress.done)
        if progress is not None:
            progress.show("")

    def _count(self, name: str, taken: Callable[[int], NDArray[np.bool_]]) -> NDArray[np.int64]:
        """Samples with each concept, i8 [C]; of part k those that are `taken(k)`."""
        count = np.zeros(self.candidates.index.concepts, np.int64)
        for k in self._own(name):
            part = self.candidates.index.part(k)
            count_concepts(part.matches, part.concept, taken(k), count)
        return self._ranks.sum(count)

    def _weights(self, k: int) -> NDArray[np.float32]:
        part = self.candidates.index.part(k)
        return sample_weights(part.matches, part.concept, self._value, self._concepts.weighting)

    def _piece(self, k: int) -> Piece:
        candidates, rows = self.candidates, self.candidates.rows(k)
        taken = candidates.fate(k) == NOT_DRAWN
        key = sample_keys(candidates.ids(k), self._weights(k), taken, self._salt, self._coins)
        languages, sources = candidates.languages, candidates.sources
        cell = self._quotas.cell_of(candidates.language[rows], candidates.source[rows], languages, sources)
        return Piece(k, rows.start, key, cell)

    def _uniform(self, k: int) -> Piece:
        """Part k, each sample with the same weight."""
        rows, taken = self.candidates.rows(k), self.candidates.fate(k) == NOT_DRAWN
        key = sample_keys(self.candidates.ids(k), np.ones(len(taken), np.float32), taken, self._random)
        return Piece(k, rows.start, key, np.zeros(len(taken), np.uint16))

    def _cells(self, pieces: list[Piece], drawn: dict[int, NDArray[np.bool_]]) -> NDArray[np.int64]:
        """Drawn samples in each cell, of all ranks."""
        counts = np.zeros(self._quotas.cells, np.int64)
        for piece in pieces:
            counts += np.bincount(piece.cell[drawn[piece.part]], minlength=len(counts))
        return self._ranks.sum(counts)
