"""Searches with an index of faiss: the flat one finds what the exact one finds, the approximate one says how much."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from onevision.concepts.search import open_search
from onevision.concepts.search.approximate import SAMPLE_EVERY, ApproximateSearch
from onevision.concepts.search.flat import FlatSearch
from onevision.errors import DataError, InputError
from onevision.recipe import ConceptRecipe
from tests.concepts.search.reference import KINDS, brute_force, vectors


def flat(rows: np.ndarray) -> FlatSearch:
    """With an index on the CPU, which is asked as one on GPUs is."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return FlatSearch(rows, index)


@pytest.mark.parametrize("kind", KINDS)
def test_flat_index_as_first_pass(kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    rows, queries = vectors(kind, 800, 48, rng), vectors("unit", 30, 48, rng)
    search = flat(rows)
    concept, score = search.top(queries, 6)
    expected = brute_force(queries, rows, 6)
    np.testing.assert_array_equal(concept, expected[0])
    np.testing.assert_array_equal(score, expected[1])
    assert search.stats.queries == 30 and search.stats.scored >= 30 * 6


def test_flat_index_that_cannot_decide_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onevision.concepts.search.flat.MOST", 50)
    rows = np.repeat(vectors("unit", 10, 16, np.random.default_rng(0)), 100, axis=0)
    search = flat(rows)
    concept, _ = search.top(rows[::100].copy(), 5)
    np.testing.assert_array_equal(concept, 100 * np.arange(10)[:, None] + np.arange(5))
    assert search.stats.whole == 10


def clusters(rows: int, rng: np.random.Generator) -> np.ndarray:
    found = vectors("unit", 40, 32, rng)[rng.integers(40, size=rows)] + 0.1 * vectors("normal", rows, 32, rng)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_approximate_measures_its_recall() -> None:
    rng = np.random.default_rng(0)
    rows, queries = clusters(5000, rng), clusters(300, rng)
    search = open_search(rows, ConceptRecipe(search="approximate"))
    concept, score = search.top(queries, 10)
    expected, _ = brute_force(queries, rows, 10)
    sampled = range(0, 300, SAMPLE_EVERY)
    same = [len(np.intersect1d(concept[i], expected[i])) for i in sampled]
    assert search.stats.sampled == len(same) and search.stats.recall == sum(same) / (10 * len(same))
    assert 0.5 < search.stats.recall <= 1
    real = np.take_along_axis(queries @ rows.T, concept.astype(np.int64), axis=1)
    np.testing.assert_allclose(score, real, rtol=0, atol=1e-6)
    assert (np.diff(score, axis=1) <= 0).all()


def test_approximate_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(1)
    rows, queries = clusters(3000, rng), clusters(60, rng)
    whole = ApproximateSearch(rows).top(queries, 5)
    search = ApproximateSearch(rows)
    pieces = [search.top(queries[begin:end], 5) for begin, end in ((0, 1), (1, 50), (50, 60))]
    for column, expected in zip(zip(*pieces, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(column), expected)


def test_approximate_gives_k_of_a_tiny_vocabulary() -> None:
    rows = vectors("unit", 9, 8, np.random.default_rng(2))
    concept, _ = ApproximateSearch(rows).top(rows, 9)
    assert (np.sort(concept, axis=1) == np.arange(9)).all()
    with pytest.raises(InputError, match="top_k=10"):
        ApproximateSearch(rows).top(rows, 10)
    with pytest.raises(DataError, match="concept 0"):
        ApproximateSearch(rows * np.nan)
