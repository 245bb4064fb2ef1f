"""What importers are made of: a source is cut into units, and a unit is read into records and rejects."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DETAIL = 300  # characters of what is said of a rejected record


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
    """A record that cannot be used: its id (or place), the reason in snake_case that is counted, and what was found."""

    id: str
    reason: str
    detail: str
