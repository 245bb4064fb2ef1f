"""The concepts whose vectors have the highest inner product with a sample's, exactly or approximately.

    exact        an int8 (or float32) pass over the vocabulary whose error is bounded, then exact scores for those
                 concepts that the bound leaves; on a node with GPUs, faiss's flat index in place of the first pass
    approximate  faiss IVF with 8-bit vectors, then exact scores for what it finds; measures its own recall

Scores are those of one compiled kernel in all cases. So the result of a query depends neither on the other queries of a
call, nor on tiles, threads or the kind of processor, and with `exact` on nothing but the vectors.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.search.stats import SearchStats
from onevision.errors import InputError
from onevision.recipe import ConceptRecipe

__all__ = ["ConceptSearch", "SearchStats", "open_search"]


class ConceptSearch(Protocol):
    """A vocabulary that can be searched."""

    @property
    def stats(self) -> SearchStats:
        """What all calls so far did."""
        ...

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The k best concepts of each query.

        Args:
            queries: float32 [n, D], C-contiguous, any n.
            k: concepts a query, 1 ... C.

        Returns:
            concept int32 [n, k] and score float32 [n, k], by score descending; ties by lower number.

        Raises:
            InputError: a shape, type or k that cannot work.
            DataError: a query is not finite, or longer than 1e18.
        """
        ...


def open_search(embedding: NDArray[Any], concepts: ConceptRecipe) -> ConceptSearch:
    """Prepare the search of a vocabulary as `concepts.search` says; its libraries are imported only now.

    Args:
        embedding: float16 or float32 [C, D]. One that is float32 and contiguous is kept, not copied.

    Raises:
        InputError: no such search, or the embedding is no such matrix.
        DataError: a vector is not finite, or longer than 1e18.
    """
    if concepts.search == "exact":
        from onevision.concepts.search.flat import FlatSearch, gpus

        if gpus():
            return FlatSearch.on_gpus(embedding)
        from onevision.concepts.search.exact import ExactSearch

        return ExactSearch(embedding)
    if concepts.search == "approximate":
        from onevision.concepts.search.approximate import ApproximateSearch

        return ApproximateSearch(embedding)
    raise InputError(f"concepts.search={concepts.search}: it is one of exact, approximate")
