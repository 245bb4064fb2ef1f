"""A draw makes rare concepts less rare than a random one does, and is the same for any ranks, parts and order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onevision.concepts.balance.quotas import Quotas
from onevision.concepts.balance.selection import Candidates, Selection
from onevision.concepts.balance.summary import RARE, coverage
from onevision.errors import InputError
from onevision.ranks import ALONE
from onevision.recipe import ConceptRecipe
from tests.concepts.balance.common import Thread, as_threads, candidates

SAMPLES, CONCEPTS, DRAWN = 20_000, 60, 4_000
FREE = Quotas({}, {})


def topical(seed: int = 0) -> list[Any]:
    """Three concepts a sample, near each other in rank; low ranks are frequent."""
    random = np.random.default_rng(seed)
    topic = (CONCEPTS - 4) ** random.random(SAMPLES)
    return [np.array([t, t + 1, t + 3], np.int32) for t in topic.astype(int).tolist()]


@pytest.fixture(scope="module")
def lists() -> list[Any]:
    return topical()


@pytest.fixture(scope="module")
def ids() -> Any:
    return np.random.default_rng(9).integers(0, 2**64, SAMPLES, np.uint64)


def fates(selection: Selection, made: Candidates) -> Any:
    return np.concatenate([selection.part(k)[1] for k in range(made.parts)])


def test_rare_concepts_are_at_most_half_of_those_of_a_random_draw(lists: list[Any], ids: Any) -> None:
    found = Selection(candidates(lists, ids, CONCEPTS), ConceptRecipe(samples=DRAWN), FREE, ALONE)
    before, after, random = (
        coverage(count, found.count_before) for count in (found.count_before, found.count_after, found.count_random)
    )
    assert found.count_after.sum() == found.count_random.sum() == 3 * DRAWN
    assert random["rare"] > 20 and after["rare"] <= random["rare"] / 2
    assert after["entropy_bits"] > before["entropy_bits"] + 0.5
    assert random["entropy_bits"] == pytest.approx(before["entropy_bits"], abs=0.1)


def test_coverage_tells_of_the_concepts_that_there_were() -> None:
    before = np.array([1000, RARE, RARE - 1, 5, 0])
    found = coverage(np.array([RARE, RARE - 1, 3, 0, 0]), before)
    assert found["covered"] == 3 and found["rare"] == 3 and found["rare_share"] == 0.75
    assert coverage(np.array([8, 8, 8, 8]), np.ones(4, int))["entropy_bits"] == pytest.approx(2)
    assert coverage(np.zeros(3, int), np.zeros(3, int))["entropy_bits"] == 0


@pytest.mark.parametrize("weighting", ["sum", "mean", "metaclip"])
def test_three_ranks_draw_what_one_draws(lists: list[Any], ids: Any, weighting: str) -> None:
    made = candidates(lists, ids, CONCEPTS, parts=7, same_images=np.array([3, 4, 19_999]))
    concepts = ConceptRecipe(samples=0 if weighting == "metaclip" else DRAWN, weighting=weighting, threshold=90)
    alone = Selection(made, concepts, FREE, ALONE)

    def work(own: Thread) -> Any:
        selection = Selection(made, concepts, FREE, own)
        return fates(selection, made), selection.count_before, selection.count_after, selection.count_random

    expected = [fates(alone, made), alone.count_before, alone.count_after, alone.count_random]
    for found in as_threads(3, work):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert expected[0][[3, 4, 19_999]].tolist() == [3, 3, 3]


def test_shuffled_rows_and_other_parts_draw_the_same_ids(lists: list[Any], ids: Any) -> None:
    order = np.random.default_rng(1).permutation(SAMPLES)
    found = []
    for rows, parts in ((np.arange(SAMPLES), 1), (order, 11)):
        made = candidates([lists[row] for row in rows], ids[rows], CONCEPTS, parts)
        drawn = fates(Selection(made, ConceptRecipe(samples=DRAWN), FREE, ALONE), made) == 0
        found.append(np.sort(ids[rows][drawn]).tolist())
    assert found[0] == found[1]


def test_more_than_there_are_without_duplicates_is_refused(lists: list[Any], ids: Any) -> None:
    made = candidates(lists, ids, CONCEPTS, same_embedding=np.arange(10))
    with pytest.raises(InputError, match="samples=20000 are more than the corpus has: 19990 without 10 duplicates"):
        Selection(made, ConceptRecipe(samples=SAMPLES), FREE, ALONE)
