"""The format `records`: a folder with `records.jsonl` and the image files that its lines name.

A line is `{id, images: ["images/x.png", …], messages: [{role, content: [{type: text, text} | {type: image}]}],
category, language, source, license}`; one array of them is read too. Image names are relative to the folder. Nothing
that is wrong with a line ends the reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from onevision.corpus.formats.images import ImageStates, check_names, read_image
from onevision.corpus.formats.textfile import Row, cut, is_array, open_text, read_rows
from onevision.corpus.formats.unit import Listing, Rejected, Unit
from onevision.corpus.record import Record, Reject, parse_record
from onevision.errors import InputError
from onevision.fingerprint import file_digest
from onevision.recipe import DataRecipe

RECORDS = "records.jsonl"


def list_units(data: DataRecipe) -> Listing:
    """Units of `data.shard_samples` lines; the digest is of the lines, and of the images' names and bytes.

    Raises:
        InputError: there is no records.jsonl, or it cannot be read.
    """
    root = Path(data.source)
    path = _manifest(root)
    state = xxhash.xxh3_128(file_digest(path).encode())

    with ImageStates(root, state.update) as images:

        def seen(row: Row) -> None:
            images.add(lambda: _image_names(row.value))

        units = cut(RECORDS, read_rows(path), data.shard_samples, seen)
    return Listing(tuple(units), state.hexdigest())


def read_unit(data: DataRecipe, unit: Unit) -> Iterator[Record | Rejected]:
    """The records of a unit in the order of their lines, or what was wrong with them.

    Raises:
        InputError: records.jsonl is gone.
    """
    root = Path(data.source)
    return _read(root, root / unit.file, unit.first, unit.begin, unit.end)


def read_records(folder: str | Path) -> Iterator[Record | Rejected]:
    """The records of a whole folder.

    Raises:
        InputError: there is no records.jsonl, or it cannot be read.
    """
    root = Path(folder)
    return _read(root, _manifest(root))


def _read(
    root: Path, path: Path, first: int = 1, begin: int = 0, end: int | None = None
) -> Iterator[Record | Rejected]:
    kind = "row" if is_array(path) else "line"
    for row in read_rows(path, first, begin, end):
        place = name = f"{kind} {row.number}"
        fields = row.value
        try:
            if isinstance(fields, dict) and isinstance(fields.get("id"), str):
                name = fields["id"].encode(errors="replace").decode() or name
            images = tuple(read_image(root, image) for image in _image_names(fields))
            yield parse_record(fields, images)
        except Reject as error:
            yield Rejected(name, error.reason, f"{place}: {error.detail}")


def _manifest(root: Path) -> Path:
    path = root / RECORDS
    if not path.is_file():
        raise InputError(f"{path} does not exist: data.source must name a folder with {RECORDS} and its images")
    open_text(path).close()
    return path


def _image_names(fields: Any) -> list[str]:
    if isinstance(fields, Reject):
        raise fields
    return check_names(fields.get("images", []) if isinstance(fields, dict) else [])
