"""The exact search finds what its definition says, on data that is easy for bounds and on data that is hard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.concepts.search import exact, firstpass, open_search
from onevision.concepts.search.exact import ExactSearch
from onevision.errors import DataError, InputError
from onevision.recipe import ConceptRecipe
from tests.concepts.search.reference import KINDS, brute_force, vectors

PASSES = ("int8", "float32")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and tiles so small that a few hundred concepts fill many."""
    monkeypatch.setattr(exact, "BLOCK", 7)
    monkeypatch.setattr(exact, "TILE", 100)
    monkeypatch.setattr(exact, "WAITING", 40)


def same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("first_pass", PASSES)
@pytest.mark.parametrize("of_queries", KINDS)
@pytest.mark.parametrize("of_concepts", KINDS)
def test_kinds_of_data(of_concepts: str, of_queries: str, first_pass: str) -> None:
    rng = np.random.default_rng(KINDS.index(of_concepts) * 100 + KINDS.index(of_queries))
    rows, queries = vectors(of_concepts, 700, 48, rng), vectors(of_queries, 12, 48, rng)
    same(ExactSearch(rows, first_pass).top(queries, 9), brute_force(queries, rows, 9))


@settings(max_examples=150)
@given(
    st.sampled_from(PASSES),
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.integers(1, 400),
    st.integers(1, 200),
    st.integers(1, 9),
    st.integers(1, 60),
    st.integers(0, 2**32),
)
def test_sizes(
    first_pass: str, of_concepts: str, of_queries: str, concepts: int, dimension: int, count: int, k: int, seed: int
) -> None:
    rng, k = np.random.default_rng(seed), min(k, concepts)
    rows, queries = vectors(of_concepts, concepts, dimension, rng), vectors(of_queries, count, dimension, rng)
    same(ExactSearch(rows, first_pass).top(queries, k), brute_force(queries, rows, k))


@pytest.mark.usefixtures("small")
@settings(max_examples=60)
@given(
    st.sampled_from(PASSES),
    st.lists(st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=3, max_size=3), min_size=2, max_size=130),
    st.integers(1, 5),
)
def test_any_numbers(first_pass: str, values: list[list[float]], k: int) -> None:
    rows = np.array(values, np.float32)
    k = min(k, len(rows))
    same(ExactSearch(rows, first_pass).top(rows[:20], k), brute_force(rows[:20], rows, k))


@pytest.mark.parametrize("first_pass", PASSES)
def test_batch_and_threads_do_not_matter(first_pass: str) -> None:
    rng = np.random.default_rng(1)
    rows, queries = vectors("unit", 9000, 96, rng), vectors("unit", 600, 96, rng)
    search = ExactSearch(rows, first_pass)
    whole = search.top(queries, 20)
    pieces = [search.top(queries[begin:end], 20) for begin, end in ((0, 1), (1, 4), (4, 599), (599, 600))]
    same(tuple(np.concatenate(column) for column in zip(*pieces, strict=True)), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        same(search.top(queries, 20), whole)
    finally:
        torch.set_num_threads(threads)


def test_few_concepts_need_a_score_and_stats_say_how_many() -> None:
    rng = np.random.default_rng(2)
    rows, queries = vectors("unit", 20_000, 128, rng), vectors("unit", 40, 128, rng)
    search = ExactSearch(rows, "int8")
    search.top(queries[:30], 10)
    search.top(queries[30:], 10)
    assert (search.stats.queries, search.stats.pairs) == (40, 40 * 20_000)
    assert 0 < search.stats.scored_fraction < 0.02
    assert search.stats.whole == 0 and search.stats.recall is None
    search.top(np.zeros((1, 128), np.float32), 10)
    assert search.stats.whole == 1  # all scores are equal: no bound can tell


def test_bounds_hold() -> None:
    rng = np.random.default_rng(3)
    for kind in KINDS:
        rows, queries = vectors(kind, 300, 100, rng), vectors("normal", 20, 100, rng)
        real = queries.astype(np.float64) @ rows.T.astype(np.float64)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        for first in (firstpass.Int8Pass(rows, lengths), firstpass.FloatPass(rows, lengths)):
            prepared = first.prepare(queries)
            out = torch.empty(20, 300, dtype=first.dtype)
            first.run(prepared, 0, 300, out)
            upper = out.numpy() * first.scale + prepared.weights @ np.stack([first.error, first.length])
            unit, offset, slack = prepared.frame.T[:, :, None]
            assert (upper * unit + offset + slack >= real).all(), (kind, type(first))


@pytest.mark.parametrize("first_pass", PASSES)
def test_half_precision(first_pass: str) -> None:
    rng = np.random.default_rng(4)
    rows, queries = vectors("unit", 500, 40, rng).astype(np.float16), vectors("unit", 5, 40, rng)
    same(ExactSearch(rows, first_pass).top(queries, 7), brute_force(queries, rows.astype(np.float32), 7))
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)][:, None]
    for some in (every[first::8] for first in range(8)):  # an eighth each, of all sizes
        same(
            ExactSearch(some, first_pass).top(np.ones((1, 1), np.float32), len(some)),
            brute_force(np.ones((1, 1)), some, len(some)),
        )
    every[7] = np.nan
    with pytest.raises(DataError, match="concept 7"):
        open_search(every, ConceptRecipe(search="exact"))


def test_no_query() -> None:
    concept, score = ExactSearch(np.ones((3, 2), np.float32)).top(np.empty((0, 2), np.float32), 2)
    assert concept.shape == score.shape == (0, 2)


def test_what_is_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    search = ExactSearch(rows)
    with pytest.raises(InputError, match="top_k=5: the vocabulary has 4 concepts"):
        search.top(rows, 5)
    with pytest.raises(InputError, match="float64"):
        search.top(rows.astype(np.float64), 1)
    with pytest.raises(InputError, match=r"\[4, 3\]"):
        search.top(rows[:, :3], 1)
    with pytest.raises(InputError, match="ascontiguousarray"):
        search.top(rows[:, ::-1], 1)
    with pytest.raises(InputError, match="it must be float16"):
        ExactSearch(np.zeros((0, 4), np.float32))
    with pytest.raises(InputError, match="int7"):
        ExactSearch(rows, "int7")
    with pytest.raises(InputError, match="exact, approximate"):
        open_search(rows, ConceptRecipe(search="other"))
    for value in (np.nan, np.inf, -np.inf, 1e19):
        bad = rows.copy()
        bad[2, 1] = value
        with pytest.raises(DataError, match="concept 2"):
            ExactSearch(bad)
        with pytest.raises(DataError, match="query 2"):
            search.top(bad, 1)


def test_int8_is_tried_and_refused_where_it_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch._int_mm

    def saturating(left: torch.Tensor, right: torch.Tensor, **out: torch.Tensor) -> torch.Tensor:
        return real(left, right, **out).clamp_(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not firstpass.int8_is_better(64, 16, 64)
    assert ExactSearch(np.ones((3, 64), np.float32)).stats.first_pass == "float32"
