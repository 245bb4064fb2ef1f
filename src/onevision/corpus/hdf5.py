"""HDF5 files of columns: laid out in memory and written as bytes, read by mapping the columns into memory.

A table may be spread over several part files, each written by whoever made it. A master file beside them shows their
columns as one (HDF5's virtual datasets), so that plain h5py reads it like any other file. HDF5 reads the place of a
missing part as zeros without a word; `open_parts` looks for every part first.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from onevision.errors import DataError


class Column:
    """A column that lies in several pieces, read as one array: `column[5]`, `column[2:9]`, `column[array]`."""

    def __init__(self, pieces: Sequence[NDArray[Any]]) -> None:
        self.pieces = tuple(pieces)
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
        found = [
            piece[max(0, first - start) : max(0, last - start)]
            for piece, start in zip(self.pieces, self._start[:-1].tolist(), strict=True)
            if start < last and start + len(piece) > first
        ]
        return np.concatenate(found) if found else np.empty(0, self.dtype)

    def _rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        values = np.empty(rows.shape, self.dtype)
        home = np.searchsorted(self._start, rows, side="right") - 1
        for number in np.unique(home).tolist():
            here = home == number
            values[here] = self.pieces[number][rows[here] - self._start[number]]
        return values


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


def write_part(path: Path, columns: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> None:
    """Write a part file of contiguous columns (names may have groups: "samples/id"); it has its name once it is whole.

    Raises:
        OSError: as any write.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with create(temporary) as file:
        for name, values in columns.items():
            file.create_dataset(name, data=np.ascontiguousarray(values))
        file.attrs.update(attributes)
    temporary.replace(path)


def add_parts(file: h5py.File, folder: Path, parts: Sequence[str], columns: Sequence[str]) -> None:
    """Make the `columns` of the part files (names inside `folder`) visible in the master `file`, one after the other.

    The master also remembers of each part its name, bytes, and `fingerprint` attribute, in /parts.
    """
    shapes: dict[str, list[int]] = {name: [] for name in columns}
    types: dict[str, list[np.dtype[Any]]] = {name: [] for name in columns}
    fingerprints = []
    for part in parts:
        with h5py.File(folder / part, "r") as source:
            fingerprints.append(str(source.attrs["fingerprint"]))
            for name in columns:
                shapes[name].append(len(source[name]))
                types[name].append(source[name].dtype)
    for name in columns:
        layout = h5py.VirtualLayout((sum(shapes[name]),), np.result_type(*set(types[name])))
        start = 0
        for part, count in zip(parts, shapes[name], strict=True):
            if count:
                layout[start : start + count] = h5py.VirtualSource(part, name, (count,))
            start += count
        file.create_virtual_dataset(name, layout)
    file.create_dataset("parts/name", data=list(parts), dtype=h5py.string_dtype())
    file.create_dataset("parts/bytes", data=np.array([(folder / part).stat().st_size for part in parts], "<i8"))
    file.create_dataset("parts/fingerprint", data=fingerprints, dtype=h5py.string_dtype())


def open_parts(path: Path, file: h5py.File, columns: Sequence[str]) -> dict[str, Column]:
    """The `columns` of the opened master `file` at `path`, each mapped into memory from the parts.

    Raises:
        DataError: a part is missing, has another size or another fingerprint than the master remembers, or rows fail.
        KeyError, OSError: the master or a part is damaged.
    """
    names = file["parts/name"].asstr()[()].tolist()
    sizes, fingerprints = file["parts/bytes"][()].tolist(), file["parts/fingerprint"].asstr()[()].tolist()
    pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
    for name, size, fingerprint in zip(names, sizes, fingerprints, strict=True):
        part = path.parent / name
        if not part.is_file():
            raise DataError(f"{part} is missing, {path.name} says {size} bytes")
        if part.stat().st_size != size:
            raise DataError(f"{part} has {part.stat().st_size} bytes, {path.name} says {size}")
        with h5py.File(part, "r") as source:
            if source.attrs["fingerprint"] != fingerprint:
                raise DataError(f"{part} has fingerprint {source.attrs['fingerprint']}, {path.name} says {fingerprint}")
            for column in columns:
                pieces[column].append(mapped(part, source[column]))
    found = {column: Column(values) for column, values in pieces.items()}
    for column, values in found.items():
        if len(values) != len(file[column]):
            raise DataError(f"{path} shows {len(file[column])} rows of {column}, its parts hold {len(values)}")
    return found


def mapped(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    """A contiguous dataset of the file `path` as read-only mapped memory: shared by processes, safe to fork."""
    offset = dataset.id.get_offset()
    if offset is None:  # an empty dataset has no place in the file
        return dataset[()]
    values = np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    return np.asarray(values)  # indexing the subclass takes several times as long
