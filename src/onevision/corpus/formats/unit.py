"""What importers are made of: a source is cut into units, and a unit is read into records and rejects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onevision.errors import InputError

MAX_DETAIL = 300  # characters of what is said of a rejected record
CUT = frozenset(("tar_unreadable", "file_unreadable", "array_unreadable"))  # reasons: nobody knows how many are lost


@dataclass(frozen=True)
class Unit:
    """A piece of the source that becomes one shard. It depends on the source and the recipe, never on who reads it.

    `file` is a name inside the source, `first` and `last` the numbers of its first and last row (both 0 where they
    are not known before reading), `begin` and `end` where the format finds them: bytes of a text file, row groups of
    a Parquet file.
    """

    file: str
    first: int = 0
    last: int = 0
    begin: int = 0
    end: int = 0

    @property
    def name(self) -> str:
        """What a person looks for."""
        return f"{self.file} rows {self.first} to {self.last}" if self.last else self.file


@dataclass(frozen=True)
class Listing:
    """The units of a source, and a digest that changes with the source; making it reads no images."""

    units: tuple[Unit, ...]
    digest: str


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used: its id (or place), the reason in snake_case that is counted, and what was found.

    With a reason of `CUT` it stands for all records of its file from there on.
    """

    id: str
    reason: str
    detail: str


def files_below(source: Path, *suffixes: str) -> list[Path]:
    """The files with one of the suffixes (".tar") in a folder and in all below it, sorted; `source` itself if it is a
    file.

    Folders are entered by links too, as large sources are often put together of them; `Path.rglob` passes over those
    without a word, and over folders that may not be read. A link that leads back to a folder above it ends there.

    Raises:
        InputError: a folder cannot be read.
    """
    if source.is_file():
        return [source]
    try:
        return sorted(_below(source, suffixes, ())) if source.is_dir() else []
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None


def file_size(path: Path) -> int:
    """Bytes of a file of the source.

    Raises:
        InputError: it is gone, or a link that leads nowhere.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _below(folder: Path, suffixes: tuple[str, ...], above: tuple[Path, ...]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:  # it knows what is a folder without another question to the file system
            if entry.is_dir():
                yield from _below(Path(entry.path), suffixes, (*above, here))
            elif entry.name.endswith(suffixes):
                yield Path(entry.path)
