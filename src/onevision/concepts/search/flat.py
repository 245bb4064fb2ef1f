"""Exact search whose first pass is a flat index of faiss, on the GPUs of a node.

The index gives more concepts than are asked for. They get exact scores; where the worst one wanted is further above the
last one given than the rounding of the index can reach, no other concept can be among the best, and the query is done.
Else it is asked for more, and at last searched on the host.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.search import kernels
from onevision.concepts.search.checks import by_blocks, vocabulary_rows
from onevision.concepts.search.exact import ExactSearch
from onevision.concepts.search.rows import blocks
from onevision.concepts.search.stats import SearchStats
from onevision.concepts.search.threads import over_rows

MORE = 4  # times k, at first and then again
MOST = 2048  # that faiss gives on a GPU
BLOCK = 8192  # queries
TF32 = 2.0**-10  # of |q| |c|: what is lost where cuBLAS keeps 11 bits of each factor, which faiss allows it to


def gpus() -> int:
    """The GPUs that faiss can use."""
    import faiss

    return int(faiss.get_num_gpus())


class FlatSearch:
    """The exact search of a vocabulary by an inner-product index of faiss that holds it."""

    def __init__(self, embedding: NDArray[Any], index: Any) -> None:
        """See InputError and DataError of `open_search`.

        Args:
            embedding: float16 or float32 [C, D].
            index: of faiss, with the same vectors in the same order; its scores are float32 or TF32 products.
        """
        self._embedding = embedding
        self._rows, lengths = vocabulary_rows(embedding)
        self._index = index
        self._longest = float(lengths.max())
        self._host: ExactSearch | None = None
        self.stats = SearchStats(first_pass="faiss-flat")

    @classmethod
    def on_gpus(cls, embedding: NDArray[Any]) -> FlatSearch:
        """A flat index in shards, one a GPU of this node."""
        import faiss

        rows, _ = vocabulary_rows(embedding)
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        index = faiss.IndexFlatIP(rows.shape[1])
        for _, block in blocks(rows):
            index.add(block)
        return cls(embedding, faiss.index_cpu_to_all_gpus(index, co=options))

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See ConceptSearch."""
        return by_blocks(self._top, queries, k, self._rows, BLOCK)

    def _top(self, queries: NDArray[np.float32], concept: NDArray[np.int32], score: NDArray[np.float32]) -> None:
        k, concepts = concept.shape[1], len(self._rows)
        most = min(MOST, concepts)
        open_rows, given, scored = np.arange(len(queries)), MORE * k, 0
        while len(open_rows) and k <= most:
            given = min(given, most)
            asked = queries[open_rows]
            last, found = self._index.search(asked, given)
            best, value = np.empty((len(asked), k), np.int32), np.empty((len(asked), k), np.float32)

            def rescore(
                part: slice,
                asked: NDArray[np.float32] = asked,
                found: NDArray[np.int64] = found,
                best: NDArray[np.int32] = best,
                value: NDArray[np.float32] = value,
            ) -> None:
                kernels.rescore(asked[part], self._rows, found[part], best[part], value[part])

            over_rows(len(asked), rescore)
            scored += found.size
            concept[open_rows], score[open_rows] = best, value
            done = self._floor(asked, value[:, -1]) > last[:, -1]
            done |= given == concepts
            open_rows = open_rows[~done]
            if given == most:
                break
            given *= MORE
        if len(open_rows):
            self._host = self._host or ExactSearch(self._embedding)
            concept[open_rows], score[open_rows] = self._host.top(queries[open_rows], k)
            scored += len(open_rows) * concepts
        self.stats = replace(
            self.stats,
            queries=self.stats.queries + len(queries),
            pairs=self.stats.pairs + len(queries) * concepts,
            scored=self.stats.scored + scored,
            whole=self.stats.whole + len(open_rows),
        )

    def _floor(self, queries: NDArray[np.float32], worst: NDArray[np.float32]) -> NDArray[np.float64]:
        """What the index may give at least for a concept that belongs to the best, whose worst scores are given."""
        lengths = np.empty(len(queries))
        kernels.lengths(queries, lengths)
        rounding = queries.shape[1] * 2.0**-24
        lost = TF32 + 2 * rounding + kernels.ULP
        return worst.astype(np.float64) - lengths * self._longest * lost - queries.shape[1] * 2.0**-125
