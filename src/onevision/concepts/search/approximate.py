"""Approximate search: a few cells of similar concepts are looked through, with 8 bits a value (faiss IVF, SQ8).

What it finds gets exact scores, so only the choice is approximate; how good that is, a sample of the queries tells,
which is searched exactly as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.search import kernels
from onevision.concepts.search.checks import by_blocks, vocabulary_rows
from onevision.concepts.search.exact import ExactSearch
from onevision.concepts.search.rows import blocks, float32
from onevision.concepts.search.stats import SearchStats
from onevision.concepts.search.threads import over_rows

VECTORS_A_CELL = 64  # that cells are learned from
LOOKED_THROUGH = 16  # one of so many cells
LEAST_CELLS = 8  # that are looked through
MORE = 2  # times k concepts get an exact score: 8 bits may have confused neighbours
SAMPLE_EVERY = 64  # queries, the first one included, of which one is searched exactly as well
SAMPLE = 256  # such queries in all
BLOCK = 8192  # queries


class ApproximateSearch:
    """The approximate search of a vocabulary: sqrt(C) cells, of which a sixteenth, or eight, are looked through."""

    def __init__(self, embedding: NDArray[Any]) -> None:
        """See InputError and DataError of `open_search`."""
        import faiss

        self._rows, _ = vocabulary_rows(embedding)
        count, dimension = self._rows.shape
        cells = max(1, math.isqrt(count))
        self._looked_through = min(cells, max(LEAST_CELLS, -(-cells // LOOKED_THROUGH)))
        self._index = faiss.index_factory(dimension, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
        self._index.cp.min_points_per_centroid = 1  # a tiny vocabulary is no reason to warn
        self._index.nprobe = self._looked_through
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # the cells then do not depend on the number of threads
        try:
            self._index.train(float32(self._rows[:: max(1, count // (cells * VECTORS_A_CELL))].copy()))
            for _, block in blocks(self._rows):
                self._index.add(block)
        finally:
            faiss.omp_set_num_threads(threads)
        self._cells = ExactSearch(self._index.quantizer.reconstruct_n(0, cells), "float32")
        self._exact = ExactSearch(embedding)
        self.stats = SearchStats(first_pass="ivf")

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See ConceptSearch; a query whose cells hold fewer than k concepts is searched exactly."""
        return by_blocks(self._top, queries, k, self._rows, BLOCK)

    def _top(self, queries: NDArray[np.float32], concept: NDArray[np.int32], score: NDArray[np.float32]) -> None:
        k, concepts = concept.shape[1], len(self._rows)
        cell, cell_score = self._cells.top(queries, self._looked_through)  # the same for any batch, unlike faiss's own
        _, found = self._index.search_preassigned(queries, MORE * k, cell.astype(np.int64), cell_score)

        def rescore(part: slice) -> None:
            kernels.rescore(queries[part], self._rows, found[part], concept[part], score[part])

        over_rows(len(queries), rescore)
        few = np.flatnonzero((found >= 0).sum(axis=1) < k)
        if len(few):
            concept[few], score[few] = self._exact.top(queries[few], k)
        rows = np.flatnonzero((self.stats.queries + np.arange(len(queries))) % SAMPLE_EVERY == 0)
        rows = rows[: SAMPLE - self.stats.sampled]
        same = 0
        if len(rows):
            expected, _ = self._exact.top(queries[rows], k)
            same = sum(len(np.intersect1d(*pair)) for pair in zip(concept[rows], expected, strict=True))
        self.stats = replace(
            self.stats,
            queries=self.stats.queries + len(queries),
            pairs=self.stats.pairs + len(queries) * concepts,
            scored=self.stats.scored + int((found >= 0).sum()) + len(few) * concepts,
            whole=self.stats.whole + len(few),
            sampled=self.stats.sampled + len(rows),
            recalled=self.stats.recalled + same,
            expected=self.stats.expected + len(rows) * k,
        )
