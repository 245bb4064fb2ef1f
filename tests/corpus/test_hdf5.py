"""Columns that lie in several files: read as one array, and never as zeros when a file is missing."""

from __future__ import annotations

import errno
import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from onevision.corpus import hdf5
from onevision.corpus.hdf5 import Column, add_parts, create, open_parts, write_part
from onevision.errors import DataError

VALUES = np.arange(100, 120, dtype=np.int64)
TABLE = np.arange(20 * 3, dtype=np.float16).reshape(20, 3)
CUTS = [0, 5, 5, 12, 20]  # the second piece is empty
PARTS = [f"part-{k}.h5" for k in range(len(CUTS) - 1)]
COLUMNS = {"number": "<i8", "table": "<f2", "group/id": "S"}


KEYS = [
    slice(None),
    slice(3, 14),
    slice(4, 5),
    slice(9, 9),
    slice(-3, None),
    slice(1, 19, 4),
    slice(None, None, -1),
    np.array([19, 0, 5, 5, 11, 12]),
    np.array([[1, 18], [6, 4]]),
    np.array([], np.int64),
    np.array([-1, -20]),
    VALUES % 3 == 0,
]


@pytest.fixture
def column() -> Column:
    return Column([VALUES[a:b] for a, b in zip(CUTS, CUTS[1:], strict=False)])


@pytest.fixture
def master(tmp_path: Path) -> Path:
    for name, a, b in zip(PARTS, CUTS, CUTS[1:], strict=False):
        ids = np.array([b"x" * (1 + a)] * (b - a), "S")  # widths differ
        columns = {"number": VALUES[a:b], "table": TABLE[a:b], "group/id": ids if len(ids) else np.empty(0, "S1")}
        write_part(tmp_path / name, columns, {"fingerprint": f"of {name}"})
    with create(tmp_path / "master.h5") as file:
        add_parts(file, tmp_path, PARTS, list(COLUMNS))
    return tmp_path / "master.h5"


def opened(master: Path) -> dict[str, Column]:
    with h5py.File(master, "r") as file:
        return open_parts(master, file, COLUMNS, tables=["table"])


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_column_is_indexed_as_an_array(column: Column, key: object) -> None:
    np.testing.assert_array_equal(column[key], VALUES[key])


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("cuts", [CUTS, [0, 20]], ids=["pieces", "whole"])
def test_a_column_of_rows_is_indexed_as_an_array(cuts: list[int], key: object) -> None:
    table = Column([TABLE[a:b] for a, b in zip(cuts, cuts[1:], strict=False)])
    found, expected = table[key], TABLE[key]
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert [table[row].tolist() for row in range(-20, 20)] == [TABLE[row].tolist() for row in range(-20, 20)]
    np.testing.assert_array_equal(np.asarray(table, np.float32), TABLE.astype(np.float32))
    assert len(table) == len(TABLE)


def test_single_rows_and_the_whole(column: Column) -> None:
    assert [column[row] for row in range(-20, 20)] == [VALUES[row] for row in range(-20, 20)]
    np.testing.assert_array_equal(np.asarray(column), VALUES)
    assert np.asarray(column, np.int32).dtype == np.int32
    assert len(column) == len(VALUES)


@pytest.mark.parametrize("key", [20, -21, np.array([3, 20]), np.array([-21])], ids=str)
def test_rows_that_are_not_there_are_refused(column: Column, key: object) -> None:
    with pytest.raises(IndexError):
        column[key]


def test_a_master_shows_its_parts_as_one(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = opened(master)
    np.testing.assert_array_equal(np.asarray(columns["number"]), VALUES)
    np.testing.assert_array_equal(np.asarray(columns["table"]), TABLE)
    assert [piece.shape for piece in columns["table"].pieces] == [(5, 3), (0, 3), (7, 3), (8, 3)]
    monkeypatch.chdir("/")  # plain h5py finds the parts beside the master, wherever it is asked from
    with h5py.File(master, "r") as file:
        np.testing.assert_array_equal(file["number"][()], VALUES)
        np.testing.assert_array_equal(file["table"][()], TABLE)
        np.testing.assert_array_equal(file["group/id"][()], np.asarray(columns["group/id"]))


def test_a_folder_can_be_moved(master: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    new = tmp_path_factory.mktemp("parent") / "moved"
    master.parent.rename(new)
    np.testing.assert_array_equal(np.asarray(opened(new / "master.h5")["number"]), VALUES)
    with h5py.File(new / "master.h5", "r") as file:
        np.testing.assert_array_equal(file["number"][()], VALUES)


def test_a_missing_part_is_an_error_and_not_zeros(master: Path) -> None:
    (master.parent / PARTS[2]).unlink()
    with h5py.File(master, "r") as file:
        assert not file["number"][5:12].any()  # what HDF5 makes of it
    with pytest.raises(DataError, match=f"{PARTS[2]} is missing"):
        opened(master)


def test_a_truncated_part_is_refused(master: Path) -> None:
    part = master.parent / PARTS[0]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{PARTS[0]} has .* bytes"):
        opened(master)


def test_a_part_of_another_making_is_refused(master: Path) -> None:
    part = master.parent / PARTS[3]
    size = part.stat().st_size
    columns = {"number": VALUES[12:20], "table": TABLE[12:20], "group/id": np.array([b"x" * 13] * 8)}
    write_part(part, columns, {"fingerprint": "of part-9.h5"})
    assert part.stat().st_size == size
    with pytest.raises(DataError, match="has fingerprint"):
        opened(master)


def test_rows_of_another_length_are_refused(tmp_path: Path) -> None:
    for number, width in enumerate((3, 4)):
        write_part(tmp_path / PARTS[number], {"table": np.zeros((2, width))}, {"fingerprint": "f"})
    with create(tmp_path / "master.h5") as file, pytest.raises(ValueError, match="too many values"):
        add_parts(file, tmp_path, PARTS[:2], ["table"])


@pytest.fixture
def few_files() -> Iterator[None]:
    """Only 16 more files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    newest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (newest + 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_there_may_be_more_parts_than_open_files(tmp_path: Path, few_files: None) -> None:
    parts = [f"part-{k}.h5" for k in range(60)]
    for k, name in enumerate(parts):
        write_part(tmp_path / name, {"number": np.array([k])}, {"fingerprint": name})
    with create(tmp_path / "master.h5") as file:
        add_parts(file, tmp_path, parts, ["number"])
    with h5py.File(tmp_path / "master.h5", "r") as file:
        column = open_parts(tmp_path / "master.h5", file, {"number": "<i8"})["number"]
    gc.collect()
    np.testing.assert_array_equal(column, np.arange(60))
    assert not column.pieces[0].flags.writeable
    del column
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_what_the_system_refuses_is_not_called_damage(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> memoryview:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(hdf5, "map_file", refuse)
    line = r"master\.h5 or a part of it cannot be read: Too many open files$"
    with pytest.raises(DataError, match=line), hdf5.opened(master, 1, "make it", "make it again"):
        pass
