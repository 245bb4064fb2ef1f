"""What a search did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchStats:
    """Counts of all calls so far."""

    first_pass: str  # int8, float32, faiss-flat, ivf
    queries: int = 0
    pairs: int = 0  # queries x concepts
    scored: int = 0  # pairs that needed an exact score
    whole: int = 0  # queries that needed one with more than half of the concepts: bounds told nothing
    sampled: int = 0  # queries of an approximate search that were searched exactly as well
    recalled: int = 0  # of the concepts that the exact search found for those, how many the approximate one found
    expected: int = 0  # how many the exact search found

    @property
    def scored_fraction(self) -> float:
        """Share of the pairs that needed an exact score."""
        return self.scored / self.pairs if self.pairs else 0.0

    @property
    def recall(self) -> float | None:
        """Share of the exact search's concepts that an approximate one found; None where nothing was compared."""
        return self.recalled / self.expected if self.expected else None
