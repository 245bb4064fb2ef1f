"""Near duplicates: every pair that is near by brute force, and no other; the first in the order of the corpus stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onevision.concepts.balance import same_meaning
from onevision.concepts.balance.build import build_balance
from onevision.concepts.balance.duplicates import find_by_embedding, find_by_images
from onevision.concepts.balance.index import BalanceIndex
from onevision.concepts.balance.joined import later_rows
from onevision.concepts.balance.same_images import tables
from onevision.concepts.index import ConceptIndex
from onevision.ranks import ALONE
from tests.concepts.balance.common import CONCEPTS, concept_part, draw_concepts, duplicated_recipe, write_index


def closed(samples: int, near: Any) -> list[int]:
    """The later rows of the sets that pairs with near(i, j) join."""
    group = list(range(samples))
    for i in range(samples):
        for j in range(i + 1, samples):
            if near(i, j) and group[i] != group[j]:
                low, high = sorted((group[i], group[j]))
                group = [low if value == high else value for value in group]
    return [row for row in range(samples) if group[row] != row]


def index_of(folder: Path, **columns: Any) -> ConceptIndex:
    """A concept index of two parts."""
    samples = len(next(iter(columns.values())))
    lists = columns.get("lists") or [np.zeros(0, np.int32)] * samples
    embedding, hashes = columns.get("embedding"), columns.get("hashes")
    middle = samples // 2
    parts = [
        concept_part(
            lists[rows], None if embedding is None else embedding[rows], None if hashes is None else hashes[rows]
        )
        for rows in (slice(0, middle), slice(middle, samples))
    ]
    return ConceptIndex.open(write_index(folder, parts, "none"))


def near_hashes(samples: int, seed: int) -> list[list[int]]:
    """Hashes of 0 to 3 images, many of them some bits from those of another sample."""
    random = np.random.default_rng(seed)
    found: list[list[int]] = []
    for _ in range(samples):
        if found and random.random() < 0.5:
            earlier = found[int(random.integers(len(found)))]
            flips = [[int(bit) for bit in random.integers(0, 64, random.integers(0, 4))] for _ in earlier]
            found.append([value ^ sum({1 << bit for bit in bits}) for value, bits in zip(earlier, flips, strict=True)])
        else:
            found.append([int(value) for value in random.integers(1, 2**64, random.integers(0, 4), np.uint64)])
        if random.random() < 0.05:
            found[-1] = [0 for _ in found[-1]]  # hashes that tell nothing
    return found


@pytest.mark.parametrize("bits", [0, 1, 3, 6, 12])
def test_samples_whose_hashes_differ_by_few_bits_are_one(tmp_path: Path, bits: int) -> None:
    hashes = near_hashes(300, seed=bits)

    def near(i: int, j: int) -> bool:
        a, b = hashes[i], hashes[j]
        if not a or len(a) != len(b) or 0 in a or 0 in b:
            return False
        return all((x ^ y).bit_count() <= bits for x, y in zip(a, b, strict=True))

    expected = closed(300, near)
    (tmp_path / "work").mkdir()
    found = find_by_images(index_of(tmp_path / "index", hashes=hashes), bits, tmp_path / "work", ALONE)
    assert found.tolist() == expected and len(expected) > 10


@settings(max_examples=200)
@given(st.integers(1, 20), st.sampled_from([10, 10**4, 10**6, 10**8]), st.data())
def test_hashes_that_are_near_meet_in_a_table(bits: int, samples: int, data: Any) -> None:
    value = data.draw(st.integers(0, 2**64 - 1))
    flips = data.draw(st.sets(st.integers(0, 63), max_size=bits))
    other = value ^ sum(1 << bit for bit in flips)
    assert any(value & int(mask) == other & int(mask) for mask in tables(samples, bits))


def vectors(samples: int, seed: int) -> NDArray[np.float16]:
    """Unit vectors in clusters, so that cosines lie on both sides of a bound."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(samples // 6, 24))
    values = centres[random.integers(len(centres), size=samples)] + random.normal(scale=0.3, size=(samples, 24))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("block", [1024, 7])
def test_samples_near_by_embedding_with_the_same_first_concept_are_one(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_meaning, "BLOCK", block)
    lists, embedding = draw_concepts(240, 8, seed=2), vectors(240, seed=3)
    exact = embedding.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    out = np.array([0, 5, 17])

    def near(i: int, j: int) -> bool:
        if i in out or j in out or not len(lists[i]) or not len(lists[j]):
            return False
        return lists[i][0] == lists[j][0] and float(exact[i] @ exact[j]) >= 0.9

    expected = closed(240, near)
    (tmp_path / "work").mkdir()
    index = index_of(tmp_path / "index", lists=lists, embedding=embedding)
    assert find_by_embedding(index, 0.9, out, tmp_path / "work", ALONE).tolist() == expected
    assert len(expected) > 10


def test_a_similarity_of_one_finds_what_is_the_same(tmp_path: Path) -> None:
    embedding = vectors(50, seed=1)
    embedding[31] = embedding[4]
    lists = [np.array([3], np.int32)] * 50
    (tmp_path / "work").mkdir()
    index = index_of(tmp_path / "index", lists=lists, embedding=embedding)
    assert find_by_embedding(index, 1.0, np.empty(0, np.int64), tmp_path / "work", ALONE).tolist() == [31]


def test_work_is_cut_into_pieces_that_hold_every_concept_once() -> None:
    first = np.random.default_rng(0).zipf(1.3, 20_000).clip(0, 4000).astype(np.int32) - 1
    left = np.random.default_rng(1).random(20_000) < 0.9
    rows, units = same_meaning.work_units(first, left)
    assert 2 < len(units) <= same_meaning.UNITS
    found = [tuple(np.unique(first[rows[bucket]]).tolist()) for unit in units for bucket in unit]
    assert all(len(concepts) == 1 for concepts in found) and len(set(found)) == len(found)
    counts = np.bincount(first[left & (first >= 0)])
    assert sum(bucket.stop - bucket.start for unit in units for bucket in unit) == counts[counts > 1].sum()


def test_the_first_of_a_chain_stays() -> None:
    assert later_rows(np.array([[9, 7], [7, 4], [20, 11]])).tolist() == [7, 9, 20]
    assert later_rows(np.empty((0, 2), np.int64)).tolist() == []


def test_duplicates_count_nowhere_and_are_never_drawn(tmp_path: Path) -> None:
    recipe = duplicated_recipe(tmp_path, 60, 9, duplicate_bits=3, duplicate_similarity=0.95)
    summary = build_balance(recipe, tmp_path / "balanced", report=lambda line: None).summary["balance"]
    index, concepts = BalanceIndex.open(tmp_path / "balanced"), ConceptIndex.open(tmp_path / "concepts")
    fate = np.asarray(index.fate)
    by_embedding, by_hash = int((fate == 2).sum()), int((fate == 3).sum())
    assert summary["duplicates"] == {"embedding": by_embedding, "image_hash": by_hash}
    assert by_embedding and by_hash and summary["drawn"] == 60 - by_embedding - by_hash
    assert (np.asarray(index.weight)[fate > 1] == 0).all()
    sample = np.repeat(np.arange(60), np.asarray(concepts.matches))
    count = np.bincount(np.asarray(concepts.concept)[fate[sample] == 0], minlength=CONCEPTS)
    assert index.count_before.tolist() == index.count_after.tolist() == count.tolist()
    assert not list((tmp_path / "balanced").glob("duplicates-*"))
