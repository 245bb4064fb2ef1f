"""HDF5 files of columns: laid out in memory and written as bytes, read by mapping the columns into memory.

A column has one value a row, or a row of values of the same length: [N] or [N, D].

A table may be spread over several part files, each written by whoever made it. A master file beside them shows their
columns as one (HDF5's virtual datasets), so that plain h5py reads it like any other file. HDF5 reads the place of a
missing part as zeros without a word; `open_parts` looks at every part first.

The master remembers where the columns begin in each part, so that thousands of parts are opened without the library
and cost one mapping each:

    /parts/  name, fingerprint (strings [P]), bytes i8 [P], column (strings [C]),
             rows, offset, itemsize i8 [P, C] (of the column in the part; bytes), fingerprint_offset i8 [P]

A file ends with a *seal*: a digest of all bytes before it, which HDF5 does not look at. The library may crash on a
damaged file and shows flipped bits as other numbers, so nothing is read, by it or by us, before the seal was compared.
A seal tells damage, not intent; so that a file from elsewhere can do no harm either, names of parts and datasets may
not lead out of the folder, and types and shapes are compared with those that are expected.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.errors import DataError, InputError
from onevision.fingerprint import file_digest
from onevision.mapped import map_file

FEW = 64  # rows that are faster looked up one by one than piece by piece


class Column:
    """A column that lies in several pieces, read as one array by its rows: `column[5]`, `column[2:9]`, `column[array]`.

    A piece is [n], or [n, D] with the same D in all.
    """

    def __init__(self, pieces: Sequence[NDArray[Any]]) -> None:
        self.pieces = tuple(pieces)
        self._row = self.pieces[0].shape[1:]  # shape of what a row holds
        self.dtype = np.result_type(*{piece.dtype for piece in self.pieces})  # strings of different widths
        self._start = np.cumsum([0, *map(len, self.pieces)])

    def __len__(self) -> int:
        return int(self._start[-1])

    def __getitem__(self, key: Any) -> Any:
        """A value, or a new array of the rows of a slice, of an array of row numbers, or of a boolean mask."""
        if len(self.pieces) == 1:
            return self.pieces[0][key]
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            if step == 1:
                return self._range(first, last)
            key = np.arange(first, last, step)
        if isinstance(key, (int, np.integer)):
            row = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= row < len(self):
                raise IndexError(f"row {int(key)} of {len(self)}")
            piece = int(np.searchsorted(self._start, row, side="right")) - 1
            return self.pieces[piece][row - int(self._start[piece])]
        return self._rows(np.asarray(key))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._range(0, len(self)).astype(dtype or self.dtype, copy=False)

    def _range(self, first: int, last: int) -> NDArray[Any]:
        if first >= last:
            return np.empty((0, *self._row), self.dtype)
        home, end = (int(np.searchsorted(self._start, row, side="right")) - 1 for row in (first, last - 1))
        found = [
            self.pieces[number][max(0, first - start) : last - start]
            for number, start in enumerate(self._start[home : end + 1].tolist(), start=home)
        ]
        return np.concatenate(found)

    def _rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        home = np.searchsorted(self._start, rows, side="right") - 1
        if rows.ndim == 1 and len(rows) <= FEW:
            places = zip(home.tolist(), (rows - self._start[home]).tolist(), strict=True)
            found = np.array([self.pieces[number][row] for number, row in places], self.dtype)
            return found.reshape(rows.shape + self._row)
        values = np.empty(rows.shape + self._row, self.dtype)
        for number in np.unique(home).tolist():
            here = home == number
            values[here] = self.pieces[number][rows[here] - self._start[number]]
        return values


@contextmanager
def opened(path: Path, format_version: int, absent: str, again: str) -> Iterator[h5py.File]:
    """Yield the file `path` of an index to be read; what the block finds wrong with it is told in one line.

    `absent` says what to do where there is none, `again` how it is made again.

    Raises:
        InputError: there is no such file, or it has another format.
        DataError: it is damaged, or, as `open_parts` finds, a part of it.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: {absent}")
    try:
        with map_file(path) as memory:
            _check_seal(path, memory)
        with h5py.File(path, "r") as file:
            version = file.attrs["format_version"]
            if version != format_version:
                raise InputError(f"{path} has format {version}, not {format_version}: {again}")
            yield file
    except DataError as error:
        raise DataError(f"{error}: {again}") from None
    except OSError as error:
        if error.errno in _SYSTEM:
            raise DataError(f"{path} or a part of it cannot be read: {os.strerror(error.errno)}") from None
        raise DataError(f"{path} is damaged ({error}): {again}") from None
    except _BROKEN as error:
        raise DataError(f"{path} is damaged ({error}): {again}") from None


# Errors of the machine or its file system, which say nothing of the file: making it again would not help.
_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
# What h5py and NumPy say to a file that is not as it should be.
_BROKEN = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
SEAL = b"\nonevision, xxh3_128 of all before: "
_SEAL_BYTES = len(SEAL) + 33  # 32 digits and a line end


def _seal(digest: str) -> bytes:
    return SEAL + digest.encode() + b"\n"


def seal_file(path: Path) -> None:
    """Put a seal at the end of a file that was written by the library itself.

    Raises:
        OSError: as any write.
    """
    digest = file_digest(path)
    with path.open("ab") as file:
        file.write(_seal(digest))


def _check_seal(path: Path, memory: memoryview) -> None:
    """Compare the bytes of the file `path` with its seal.

    Raises:
        DataError: they are others, or there is none.
    """
    with memory[: max(0, len(memory) - _SEAL_BYTES)] as content:
        if memory[len(content) :] != _seal(xxhash.xxh3_128_hexdigest(content)):
            raise DataError(f"{path} is damaged (the digest at its end is not that of its content)")


@contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """Yield a new file (for HDF5 1.10 and later) to fill; it is written to `path` when the block ends well.

    The library itself never sees a full disk: it could not close its file any more, and hides the system's error.

    Raises:
        OSError: as any write.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v110")) as file:
        yield file
    with path.open("wb") as target:
        target.write(image.getbuffer())
        target.write(_seal(xxhash.xxh3_128_hexdigest(image.getbuffer())))


def write_part(path: Path, columns: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> None:
    """Write a part file of contiguous columns (names may have groups: "samples/id"); it has its name once it is whole.

    `attributes` hold a "fingerprint" of what the part says.

    Raises:
        OSError: as any write.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with create(temporary) as file:
        for name, values in columns.items():
            file.create_dataset(name, data=np.ascontiguousarray(values))
        file.create_dataset(_FINGERPRINT, data=np.bytes_(attributes["fingerprint"]))
        file.attrs.update(attributes)
    temporary.replace(path)


_FINGERPRINT = "fingerprint"  # also a dataset: it has a place in the file that is read without the library


def add_parts(file: h5py.File, folder: Path, parts: Sequence[str], columns: Sequence[str]) -> None:
    """Make the `columns` of the part files (names inside `folder`) visible in the master `file`, one after the other.

    A column has the same type in all parts, but for strings, which may differ in width, and rows of the same length.
    The master remembers the parts in /parts.
    """
    place = {name: np.zeros((len(parts), len(columns)), "<i8") for name in ("rows", "offset", "itemsize")}
    types: dict[str, set[np.dtype[Any]]] = {name: set() for name in columns}
    shapes: dict[str, set[tuple[int, ...]]] = {name: set() for name in columns}
    fingerprints, fingerprint_offset = [], []
    for number, part in enumerate(parts):
        with h5py.File(folder / part, "r") as source:
            fingerprints.append(source[_FINGERPRINT][()].decode())
            fingerprint_offset.append(source[_FINGERPRINT].id.get_offset())
            for c, name in enumerate(columns):
                dataset = source[name]
                types[name].add(dataset.dtype)
                shapes[name].add(dataset.shape[1:])
                place["rows"][number, c], place["itemsize"][number, c] = len(dataset), dataset.dtype.itemsize
                place["offset"][number, c] = dataset.id.get_offset() or 0  # an empty dataset has no place
    for c, name in enumerate(columns):
        counts = place["rows"][:, c].tolist()
        (row,) = shapes[name]
        layout = h5py.VirtualLayout((sum(counts), *row), np.result_type(*types[name]))
        layout.dcpl.set_obj_track_times(False)  # the same columns are the same bytes, whenever they are written
        start = 0
        for part, count in zip(parts, counts, strict=True):
            if count:
                layout[start : start + count] = h5py.VirtualSource(part, name, (count, *row))
            start += count
        file.create_virtual_dataset(name, layout)
    strings = {"name": parts, "fingerprint": fingerprints, "column": columns}
    for name, values in strings.items():
        file.create_dataset(f"parts/{name}", data=list(values), dtype=h5py.string_dtype())
    sizes = [(folder / part).stat().st_size for part in parts]
    for name, numbers in {**place, "bytes": sizes, "fingerprint_offset": fingerprint_offset}.items():
        file.create_dataset(f"parts/{name}", data=np.asarray(numbers, "<i8"))


def open_parts(
    path: Path,
    file: h5py.File,
    columns: Mapping[str, str],
    tables: Collection[str] = (),
    sealed: bool = True,
) -> dict[str, Column]:
    """The `columns` of the opened master `file` at `path`, each mapped into memory from the parts.

    Args:
        columns: the type of each, as "<i4", or "S" of strings of any width.
        tables: those that are [N, D], not [N].
        sealed: whether the seals of the parts are compared too, for which all of them is read.

    Raises:
        DataError: a part is missing, has another size or another fingerprint than the master remembers, or rows fail.
        KeyError, OSError, ValueError, …: the master is damaged, or a part cannot be read.
    """
    known = strings(file, "parts/column")
    numbers = [known.index(name) for name in columns]
    place = [own(file, f"parts/{name}", "<i8", 2)[()] for name in ("rows", "offset", "itemsize")]
    rows, offsets, itemsizes = (values[:, numbers].tolist() for values in place)
    shown = [_dataset(file, name, dtype, 2 if name in tables else 1) for name, dtype in columns.items()]
    types, shapes = [dataset.dtype for dataset in shown], [dataset.shape for dataset in shown]
    widths = [math.prod(shape[1:]) for shape in shapes]
    names, fingerprints = (strings(file, f"parts/{name}") for name in ("name", "fingerprint"))
    sizes, starts = (own(file, f"parts/{name}", "<i8")[()].tolist() for name in ("bytes", "fingerprint_offset"))
    pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        memory = _map_part(path, name, size)
        start, ours = starts[number], fingerprints[number].encode()
        if memory[start : start + len(ours)] != ours:
            found = bytes(memory[start : start + len(ours)]).decode(errors="replace")
            raise DataError(f"{path.parent / name} has fingerprint {found}, {path.name} says {fingerprints[number]}")
        if sealed:
            _check_seal(path.parent / name, memory)
        for c, column in enumerate(columns):
            dtype = np.dtype(f"S{itemsizes[number][c]}") if types[c].kind == "S" else types[c]
            values = np.frombuffer(memory, dtype, rows[number][c] * widths[c], offsets[number][c])
            pieces[column].append(values if len(shapes[c]) == 1 else values.reshape(rows[number][c], *shapes[c][1:]))
    found_columns = {column: Column(found) for column, found in pieces.items()}
    for (column, found_column), (expected, *_) in zip(found_columns.items(), shapes, strict=True):
        if len(found_column) != expected:
            raise DataError(f"{path} shows {expected} rows of {column}, its parts hold {len(found_column)}")
    return found_columns


def _map_part(path: Path, name: str, size: int) -> memoryview:
    """A part of the master at `path` as read-only memory: shared by processes, safe to fork."""
    if name in ("", "..") or "/" in name:
        raise ValueError(f"it names the part {name!r}, which is not in its folder")
    part = path.parent / name
    try:
        found = part.stat().st_size
        if found != size:
            raise DataError(f"{part} has {found} bytes, {path.name} says {size}")
        return map_file(part)
    except FileNotFoundError:
        raise DataError(f"{part} is missing, {path.name} says {size} bytes") from None


def check_part(path: Path) -> None:
    """Compare a part file that was opened without its seal with it.

    Raises:
        DataError: its bytes are others.
    """
    with map_file(path) as memory:
        _check_seal(path, memory)


def own(file: h5py.File, name: str, dtype: str, dimensions: int = 1) -> h5py.Dataset:
    """A dataset whose values lie in the file itself, in one piece.

    Raises:
        KeyError, ValueError: there is none of this type and number of dimensions, or its values lie elsewhere.
    """
    dataset = _dataset(file, name, dtype, dimensions)
    if dataset.is_virtual or dataset.external is not None or dataset.chunks is not None:
        raise ValueError(f"the values of {name} do not lie in the file, in one piece")
    return dataset


def _dataset(file: h5py.File, name: str, dtype: str, dimensions: int) -> h5py.Dataset:
    """As `own`, but the values may lie in part files."""
    steps = name.split("/")
    for k in range(len(steps)):
        if not isinstance(file.get("/".join(steps[: k + 1]), getlink=True), h5py.HardLink):
            raise ValueError(f"{'/'.join(steps[: k + 1])} is missing, or a link to another place")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != dimensions:
        raise ValueError(f"{name} is no dataset of {dimensions} dimensions")
    if dataset.dtype.kind != "S" if dtype == "S" else dataset.dtype != np.dtype(dtype):
        raise ValueError(f"{name} is of type {dataset.dtype}, not {dtype}")
    return dataset


def strings(file: h5py.File, name: str) -> list[str]:
    """The texts of a dataset [n] of strings, of any length each, that lies in the file itself.

    Raises:
        KeyError, ValueError, TypeError: there is none, or it is no UTF-8.
    """
    found: list[str] = own(file, name, "O").asstr()[()].tolist()
    return found


def mapped(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    """A contiguous dataset of the file `path` as read-only mapped memory: shared by processes, safe to fork."""
    offset = dataset.id.get_offset()
    if offset is None:  # an empty dataset has no place in the file
        return dataset[()]
    values = np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    return np.asarray(values)  # indexing the subclass takes several times as long
