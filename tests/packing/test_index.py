"""`packs.h5`: written, opened, and refused when it is not what it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from onevision.corpus.build import build_corpus
from onevision.corpus.hdf5 import Column
from onevision.corpus.index import CorpusIndex
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import DataError, InputError
from onevision.packing.build import build_packs
from onevision.packing.index import FILE, PackIndex, part_file, write_master, write_pack_part
from onevision.recipe import DataRecipe
from tests.fixtures import edited, sample_record, tiny_tokenizer, write_records

ATTRIBUTES: dict[str, str | int] = {
    "corpus": "c" * 32,
    "tokenizer": "t" * 32,
    "template": "m" * 32,
    "min_pixels": 3136,
    "max_pixels": 100_000,
    "sequence_length": 64,
    "max_patches": 20,
    "max_attention_cost": 0,
    "seed": 5,
    "part_samples": 3,
}
COLUMNS = {
    "pack_start": np.array([0, 2, 3]),
    "sample": np.array([4, 0, 2]),
    "tokens": np.array([60, 64]),
    "patches": np.array([16, 0]),
    "attention_cost": np.array([1800, 4096]),
}


OTHER = {
    "pack_start": np.array([0, 1]),
    "sample": np.array([5]),
    "tokens": np.array([9]),
    "patches": np.array([4]),
    "attention_cost": np.array([81]),
}
NONE = {name: values[:1] if name == "pack_start" else values[:0] for name, values in COLUMNS.items()}


def write_packs(
    folder: Path, *parts: dict[str, np.ndarray], attributes: dict[str, str | int] = ATTRIBUTES
) -> str:
    """Write part files and their master; returns the fingerprint."""
    for number, columns in enumerate(parts):
        write_pack_part(folder, number, columns)
    write_master(folder, len(parts), attributes)
    with h5py.File(folder / FILE) as file:
        return str(file.attrs["fingerprint"])


def test_columns_and_attributes_come_back(tmp_path: Path) -> None:
    fingerprint = write_packs(tmp_path, COLUMNS, NONE, OTHER)
    index = PackIndex.open(tmp_path)
    expected = {name: np.concatenate([COLUMNS[name], OTHER[name]]) for name in COLUMNS}
    expected["pack_start"] = np.array([0, 2, 3, 4])
    for name, values in expected.items():
        assert np.array_equal(getattr(index, name), values), name
    assert {name: getattr(index, name) for name in ATTRIBUTES} == ATTRIBUTES
    assert (index.packs, index.samples, index.most_patches, index.fingerprint) == (3, 4, 16, fingerprint)
    assert [index.samples_of(pack) for pack in range(3)] == [[4, 0], [2], [5]]
    with h5py.File(tmp_path / FILE) as file:  # as anybody reads it
        assert {name: file[name].dtype.str for name in COLUMNS} == {
            "pack_start": "<i8", "sample": "<i8", "tokens": "<i4", "patches": "<i4", "attention_cost": "<i8"
        }  # fmt: skip
        for name, values in expected.items():
            assert np.array_equal(file[name][()], values), name
    with h5py.File(tmp_path / part_file(2)) as file:
        assert {name: file[name][()].tolist() for name in OTHER} == {name: OTHER[name].tolist() for name in OTHER}


def test_fingerprint_follows_columns_and_attributes(tmp_path: Path) -> None:
    fingerprints = {
        write_packs(tmp_path, COLUMNS),
        write_packs(tmp_path, COLUMNS | {"sample": np.array([0, 4, 2])}),
        write_packs(tmp_path, COLUMNS, attributes=ATTRIBUTES | {"seed": 6}),
        write_packs(tmp_path, COLUMNS, OTHER),
    }
    assert len(fingerprints) == 4
    assert write_packs(tmp_path, COLUMNS) in fingerprints


def test_a_part_that_is_not_the_one_it_was(tmp_path: Path) -> None:
    """HDF5 itself reads the place of a missing part as zeros."""
    write_packs(tmp_path, COLUMNS, OTHER)
    part = tmp_path / part_file(1)
    whole = part.read_bytes()
    part.unlink()
    with h5py.File(tmp_path / FILE) as file:
        assert file["tokens"][()].tolist() == [60, 64, 0]
    with pytest.raises(DataError, match=r"packs-00001\.h5 is missing, packs\.h5 says \d+ bytes: run `make pack`"):
        PackIndex.open(tmp_path)
    part.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"packs-00001\.h5 has \d+ bytes, packs\.h5 says \d+: run `make pack`"):
        PackIndex.open(tmp_path)
    write_pack_part(tmp_path, 1, OTHER | {"sample": np.array([6])})
    with pytest.raises(DataError, match=r"packs-00001\.h5 has fingerprint \w+, packs\.h5 says \w+: run `make pack`"):
        PackIndex.open(tmp_path)
    part.write_bytes(whole)
    PackIndex.open(tmp_path)


def test_missing_or_other_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"packs\.h5 does not exist: run `make pack`"):
        PackIndex.open(tmp_path)
    write_packs(tmp_path, COLUMNS)
    with edited(tmp_path / FILE) as file:
        file.attrs["format_version"] = 99
    with pytest.raises(InputError, match="has format 99, not 2"):
        PackIndex.open(tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {"pack_start": np.array([0, 2, 4])},
        {"pack_start": np.array([0, 3, 3])},
        {"pack_start": np.array([0, 3])},
        {"tokens": np.array([60])},
        {"sample": np.array([4])},
        NONE,
    ],
)
def test_columns_that_do_not_fit_each_other(tmp_path: Path, columns: dict[str, np.ndarray]) -> None:
    write_packs(tmp_path, COLUMNS | columns)
    with pytest.raises(DataError, match=r"packs\.h5 is damaged .*run `make pack` again"):
        PackIndex.open(tmp_path)


def test_truncated_or_incomplete_file(tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_packs(tmp_path, COLUMNS)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"packs\.h5 is damaged") as caught:
            PackIndex.open(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    with edited(path) as file:
        del file["patches"]
    with pytest.raises(DataError, match=r"packs\.h5 is damaged"):
        PackIndex.open(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataRecipe, Tokenizer]:
    """A corpus and its packs."""
    root = tmp_path_factory.mktemp("made")
    tokenizer = tiny_tokenizer(root / "tokenizer")
    write_records(root / "records", [sample_record(i) for i in range(12)])
    data = DataRecipe(
        source=str(root / "records"), corpus=str(root / "corpus"), packs=str(root / "packs"),
        tokenizer=str(root / "tokenizer"), sequence_length=256,
    )  # fmt: skip
    build_corpus(data, data.corpus)
    build_packs(data, data.packs)
    return data, tokenizer


def test_packs_fit_the_corpus_they_were_made_for(made: tuple[DataRecipe, Tokenizer]) -> None:
    data, tokenizer = made
    PackIndex.open(data.packs).check_against(CorpusIndex.open(data.corpus), data, tokenizer)


@pytest.mark.parametrize(
    ("name", "made_with", "value"),
    [
        ("min_pixels", 3136, 784 * 5),
        ("max_pixels", 2_560_000, 100_000),
        ("sequence_length", 256, 512),
        ("max_patches", 0, 2000),
        ("max_attention_cost", 0, 30_000),
        ("pack_part_samples", 1_000_000, 100),
        ("pack_seed", 0, 3),
    ],
)
def test_packs_of_another_recipe_are_refused(
    made: tuple[DataRecipe, Tokenizer], name: str, made_with: int, value: int
) -> None:
    data, tokenizer = made
    index, corpus = PackIndex.open(data.packs), CorpusIndex.open(data.corpus)
    with pytest.raises(InputError) as caught:
        index.check_against(corpus, replace(data, **{name: value}), tokenizer)
    attribute = name.removeprefix("pack_")
    assert str(caught.value) == (
        f"{index.path} was made with {attribute}={made_with}, this run has {value}: run `make pack` again"
    )


def test_packs_of_another_tokenizer_are_refused(made: tuple[DataRecipe, Tokenizer], tmp_path: Path) -> None:
    data, tokenizer = made
    text = tokenizer.path.read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    other = load_tokenizer(tmp_path)
    assert other.fingerprint != tokenizer.fingerprint
    index = PackIndex.open(data.packs)
    with pytest.raises(InputError) as caught:
        index.check_against(CorpusIndex.open(data.corpus), data, other)
    assert str(caught.value) == (
        f"{index.path} was made with tokenizer={tokenizer.fingerprint}, this run has {other.fingerprint}: "
        "run `make pack` again"
    )


def test_packs_of_another_corpus_are_refused(made: tuple[DataRecipe, Tokenizer], tmp_path: Path) -> None:
    data, tokenizer = made
    write_records(tmp_path / "records", [sample_record(i) for i in range(11)])
    other = replace(data, source=str(tmp_path / "records"), corpus=str(tmp_path / "corpus"))
    build_corpus(other, other.corpus)
    corpus, index = CorpusIndex.open(other.corpus), PackIndex.open(data.packs)
    with pytest.raises(InputError) as caught:
        index.check_against(corpus, other, tokenizer)
    mine = CorpusIndex.open(data.corpus).fingerprint
    assert str(caught.value) == (
        f"{index.path} was made with corpus={mine}, this run has {corpus.fingerprint}: run `make pack` again"
    )


def test_rows_outside_the_corpus_are_damage(made: tuple[DataRecipe, Tokenizer], tmp_path: Path) -> None:
    data, tokenizer = made
    index, corpus = PackIndex.open(data.packs), CorpusIndex.open(data.corpus)
    sample = np.array(index.sample)
    sample[0] = len(corpus)
    with pytest.raises(DataError, match=r"rows [01] to 12 of a corpus of 12"):
        replace(index, sample=Column([sample[:5], sample[5:]])).check_against(corpus, data, tokenizer)
