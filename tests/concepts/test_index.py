"""`concepts.h5`: written, opened, and refused when it is not what it should be."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from onevision.concepts.index import FILE, ConceptIndex, ConceptPart, part_file, write_concept_part, write_master
from onevision.errors import DataError, InputError
from tests.fixtures import edited

ATTRIBUTES: dict[str, str | int | float] = {
    "concepts": 6,
    "dimension": 4,
    "top_k": 2,
    "min_score": 0.0,
    "image_hashes": 1,
    "match": "embedding",
    "search": "exact",
    "corpus": "c" * 32,
    "vocabulary": "v" * 32,
    "encoder": "e" * 32,
}
PART = ConceptPart(
    matches=np.array([2, 0, 1], np.uint16),
    concept=np.array([5, 0, 3], np.int32),
    score=np.array([0.5, 0.25, 0.75], np.float32),
    image_hash_count=np.array([0, 2, 1], np.uint16),
    image_hash=np.array([1, 1 << 63, 0], np.uint64),
    embedding=np.eye(3, 4, dtype=np.float16),
)
OTHER = ConceptPart(
    matches=np.array([1], np.uint16),
    concept=np.array([3], np.int32),
    score=np.array([1], np.float32),
    image_hash_count=np.array([0], np.uint16),
    image_hash=np.array([], np.uint64),
    embedding=np.ones((1, 4), np.float16),
)
NONE = ConceptPart(**{field.name: getattr(PART, field.name)[:0] for field in fields(PART)})
NAMES = {
    "matches": "samples/matches",
    "concept": "concepts/concept",
    "score": "concepts/score",
    "image_hash_count": "samples/image_hash_count",
    "image_hash": "images/hash",
    "embedding": "samples/embedding",
}


def write(folder: Path, *parts: ConceptPart, attributes: dict[str, str | int] = ATTRIBUTES) -> ConceptIndex:
    for k, part in enumerate(parts):
        write_concept_part(folder, k, part)
    write_master(folder, len(parts), attributes)
    return ConceptIndex.open(folder)


def test_columns_and_attributes_come_back(tmp_path: Path) -> None:
    index = write(tmp_path, PART, NONE, OTHER)
    assert {name: getattr(index, name) for name in ATTRIBUTES} == ATTRIBUTES
    assert (len(index), index.parts, index.count.tolist()) == (4, 3, [1, 0, 0, 2, 0, 1])
    with h5py.File(tmp_path / FILE) as file:  # as anybody reads it
        assert file["count"][()].tolist() == index.count.tolist()
        for name, dataset in NAMES.items():
            expected = np.concatenate([getattr(part, name) for part in (PART, NONE, OTHER)])
            assert np.array_equal(getattr(index, name), expected), name
            assert np.array_equal(file[dataset][()], expected) and file[dataset].dtype == expected.dtype, name
    for k, part in enumerate((PART, NONE, OTHER)):
        for name in NAMES:
            assert np.array_equal(getattr(index.part(k), name), getattr(part, name)), name


def test_without_embeddings_there_is_no_such_column(tmp_path: Path) -> None:
    parts = [replace(part, embedding=None) for part in (PART, OTHER)]
    index = write(tmp_path, *parts, attributes={**ATTRIBUTES, "dimension": 0, "match": "substring", "encoder": ""})
    assert index.embedding is None and index.part(0).embedding is None
    with h5py.File(tmp_path / FILE) as file:
        assert "embedding" not in file["samples"]


def test_the_fingerprint_is_of_all_columns_and_attributes(tmp_path: Path) -> None:
    known = {write(tmp_path, PART, OTHER).fingerprint}
    assert write(tmp_path, PART, OTHER).fingerprint in known
    others = [
        replace(PART, matches=PART.matches[[2, 1, 0]]),
        replace(PART, concept=PART.concept[[1, 0, 2]]),
        replace(PART, score=PART.score[[1, 0, 2]]),
        replace(PART, image_hash_count=PART.image_hash_count[[1, 0, 2]]),
        replace(PART, image_hash=PART.image_hash + np.uint64(1)),
        replace(PART, embedding=PART.embedding[::-1]),  # type: ignore[index]
    ]
    known |= {write(tmp_path, part, OTHER).fingerprint for part in others}
    attributes = [{**ATTRIBUTES, name: "x" if isinstance(value, str) else 7} for name, value in ATTRIBUTES.items()]
    attributes = [values for values in attributes if values["dimension"] == ATTRIBUTES["dimension"]]  # as its shape
    known |= {write(tmp_path, PART, OTHER, attributes=values).fingerprint for values in attributes}
    assert len(known) == 1 + len(others) + len(attributes)


def test_a_concept_that_the_vocabulary_lacks_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        write(tmp_path, PART, attributes={**ATTRIBUTES, "concepts": 5})
    assert not (tmp_path / FILE).exists()


def test_a_missing_index_is_named_with_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"concepts.h5 does not exist: run `make concepts`"):
        ConceptIndex.open(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path, PART)
    with edited(tmp_path / FILE) as file:
        file.attrs["format_version"] = 9
    with pytest.raises(InputError, match="has format 9, not 1"):
        ConceptIndex.open(tmp_path)


def test_a_missing_part_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    write(tmp_path, PART, OTHER)
    (tmp_path / part_file(1)).unlink()
    with pytest.raises(DataError, match=r"concepts-000001.h5 is missing.*run `make concepts` again"):
        ConceptIndex.open(tmp_path)


def test_a_part_of_another_making_is_refused(tmp_path: Path) -> None:
    write(tmp_path, PART, OTHER)
    write_concept_part(tmp_path, 1, replace(OTHER, score=OTHER.score / 2))
    with pytest.raises(DataError, match=r"concepts-000001.h5 has fingerprint"):
        ConceptIndex.open(tmp_path)


def test_a_damaged_master_is_refused(tmp_path: Path) -> None:
    write(tmp_path, PART, OTHER)
    with edited(tmp_path / FILE) as file:
        file["count"][0] = 9
    with pytest.raises(DataError, match="columns do not fit each other"):
        ConceptIndex.open(tmp_path)
    (tmp_path / FILE).write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"concepts.h5 is damaged .*run `make concepts` again"):
        ConceptIndex.open(tmp_path)


@pytest.mark.parametrize("name", ["matches", "image_hash_count"])
def test_counts_that_do_not_fit_their_part_are_refused(tmp_path: Path, name: str) -> None:
    index = write(tmp_path, replace(PART, **{name: np.array([1, 1, 3], np.uint16)}), OTHER)
    with pytest.raises(DataError, match=r"concepts-000000.h5 is damaged"):
        index.part(0)
    assert len(index.part(1)) == 1
