"""Exact search for the concepts with the highest inner product, by a fast first pass and few exact scores.

Tiles of the vocabulary meet blocks of queries, so that memory does not grow with the queries: the vocabulary as it is
given, a copy of it in 8 bits, and some MB.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.search import kernels
from onevision.concepts.search.checks import by_blocks, vocabulary_rows
from onevision.concepts.search.firstpass import FirstPass, FloatPass, Int8Pass, int8_is_better
from onevision.concepts.search.stats import SearchStats
from onevision.concepts.search.threads import over_rows
from onevision.errors import InputError

BLOCK = 512  # queries
TILE = 4096  # concepts
WAITING = 1024  # concepts a query that wait for their score
WHOLE = 0.5  # share of the concepts from which on a query counts as one that was scored as a whole


class ExactSearch:
    """The exact search of a vocabulary."""

    def __init__(self, embedding: NDArray[Any], first_pass: str = "") -> None:
        """Prepare the vocabulary, float16 or float32 [C, D].

        Args:
            embedding: one that is contiguous is not copied.
            first_pass: int8 or float32; empty: what is faster here. Results are the same.

        Raises:
            InputError: the shape, type or first pass cannot work.
            DataError: a vector is not finite, or longer than 1e18.
        """
        passes: dict[str, type[Int8Pass] | type[FloatPass]] = {"int8": Int8Pass, "float32": FloatPass}
        self._rows, lengths = vocabulary_rows(embedding)
        chosen = first_pass or ("int8" if int8_is_better(self._rows.shape[1], BLOCK, TILE) else "float32")
        if chosen not in passes:
            raise InputError(f"first pass {chosen!r}: it is one of {', '.join(passes)}")
        self._first_pass: FirstPass = passes[chosen](self._rows, lengths)
        self.stats = SearchStats(first_pass=chosen)

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See ConceptSearch."""
        return by_blocks(self._top, queries, k, self._rows, BLOCK)

    def _top(self, queries: NDArray[np.float32], best: NDArray[np.int32], score: NDArray[np.float32]) -> None:
        """Write the best concepts of a block of queries to `best` and `score`."""
        import torch

        first, count, concepts = self._first_pass, len(queries), len(self._rows)
        prepared = first.prepare(queries)
        room = max(WAITING, 4 * best.shape[1])
        waiting, upper = np.empty((count, room), np.int32), np.empty((count, room), np.float32)
        must, held = np.full(count, -np.inf, np.float32), np.zeros((count, 3), np.int64)
        buffer = torch.empty(count * min(TILE, concepts), dtype=first.dtype)
        for begin in range(0, concepts, TILE):
            tile = slice(begin, min(begin + TILE, concepts))
            out = buffer[: count * (tile.stop - begin)].view(count, -1)
            first.run(prepared, begin, tile.stop, out)
            passed = out.numpy()

            def collect(part: slice, tile: slice = tile, passed: NDArray[Any] = passed) -> None:
                kernels.collect(
                    tile.start, passed[part], first.scale[tile], first.error[tile], first.length[tile],
                    queries[part], self._rows, must[part], prepared.weights[part], prepared.frame[part], held[part],
                    waiting[part], upper[part], best[part], score[part],
                )  # fmt: skip

            over_rows(count, collect)

        def finish(part: slice) -> None:
            kernels.finish(
                queries[part], self._rows, must[part], prepared.frame[part], held[part],
                waiting[part], upper[part], best[part], score[part],
            )  # fmt: skip

        over_rows(count, finish)
        scored = held[:, kernels.SCORED]
        self.stats = replace(
            self.stats,
            queries=self.stats.queries + count,
            pairs=self.stats.pairs + count * concepts,
            scored=self.stats.scored + int(scored.sum()),
            whole=self.stats.whole + int((scored > WHOLE * concepts).sum()),
        )
