"""What a search refuses: shapes and types that cannot work, and vectors with values that are no embedding's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.search import kernels
from onevision.concepts.search.rows import as_rows, blocks
from onevision.concepts.search.threads import over_rows
from onevision.errors import DataError, InputError

LONGEST = 1e18  # of a vector: scores stay within float32


def vocabulary_rows(embedding: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The rows of the vocabulary [C, D] (no copy of one that is contiguous), and the lengths of its vectors [C].

    Raises:
        InputError: it is no float16 or float32 matrix of at least one concept and one dimension.
        DataError: a vector is not finite, or longer than 1e18.
    """
    if embedding.ndim != 2 or embedding.dtype not in (np.float16, np.float32) or not embedding.size:
        raise InputError(f"vocabulary: {_kind(embedding)}; it must be float16 or float32 [concepts, dimension]")
    rows = as_rows(embedding)
    return rows, _lengths(rows, "concept")


def by_blocks(
    search: Callable[[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]], None],
    queries: NDArray[np.float32],
    k: int,
    rows: NDArray[Any],
    block: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What `ConceptSearch.top` gives: `search(queries, concept, score)` writes [n, k] for at most `block` queries.

    Raises:
        InputError, DataError: as `check_queries`.
    """
    check_queries(queries, k, rows)
    concept, score = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
    for begin in range(0, len(queries), block):
        part = slice(begin, begin + block)
        search(queries[part], concept[part], score[part])
    return concept, score


def check_queries(queries: NDArray[Any], k: int, rows: NDArray[Any]) -> None:
    """Refuse queries that cannot be searched.

    Raises:
        InputError: they are not float32 [n, D], C-contiguous, or k is not 1 ... C.
        DataError: a vector is not finite, or longer than 1e18.
    """
    count, dimension = rows.shape
    if not 1 <= k <= count:
        raise InputError(f"top_k={k}: the vocabulary has {count} concepts; choose 1 to {count}")
    if queries.ndim != 2 or queries.shape[1] != dimension or queries.dtype != np.float32:
        raise InputError(f"queries: {_kind(queries)}; the vocabulary needs float32 [n, {dimension}]")
    if not queries.flags.c_contiguous:
        raise InputError("queries: rows must lie behind each other in memory; use numpy.ascontiguousarray")
    _lengths(queries, "query")


def _lengths(vectors: NDArray[Any], what: str) -> NDArray[np.float64]:
    found = np.empty(len(vectors))
    for place, block in blocks(vectors):
        over_rows(len(block), partial(_write_lengths, block, found[place]))
    bad = np.flatnonzero(~(found <= LONGEST))
    if len(bad):
        raise DataError(
            f"{what} {bad[0]}: its vector has length {found[bad[0]]:g}, {len(bad)} like that of {len(vectors)}; "
            "embeddings are finite and have about unit length, embed again"
        )
    return found


def _write_lengths(vectors: NDArray[np.float32], out: NDArray[np.float64], part: slice) -> None:
    kernels.lengths(vectors[part], out[part])


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
