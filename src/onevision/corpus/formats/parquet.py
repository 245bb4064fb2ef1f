"""The format `parquet`: a folder of Parquet files with images in them, as `<source>/{EN,CN}/part*/*.parquet`.

A row is an image and its caption, or images (none, one or many) and a conversation. The columns are found by the usual
names, or named by `data.columns` ("image=jpg"). An image is bytes, or a struct with `bytes`, or a list of these. The
language is that of the folder EN or CN (ZH) above the file, and the source is the folder above that; elsewhere the
language is told by the text and the source by the first folder. A caption answers the `prompt` of its row, or a fixed
one in its language (`onevision.corpus.formats.conversation.CAPTION_PROMPTS`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onevision.corpus.formats.conversation import TURNS, caption_record, conversation_record
from onevision.corpus.formats.textfile import open_text
from onevision.corpus.formats.unit import Listing, Rejected, Unit, file_size, files_below
from onevision.corpus.record import Record, Reject
from onevision.errors import InputError
from onevision.fingerprint import value_digest
from onevision.recipe import DataRecipe

# The names under which a column is looked for, in this order.
COLUMNS = {
    "image": ("image", "images", "jpg", "img", "image_bytes", "png"),
    "caption": ("caption", "captions", "recaption", "text", "txt"),
    "turns": TURNS,
    "prompt": ("prompt", "question", "instruction"),
    "id": ("id", "image_id", "key", "__key__", "uuid"),
    "category": ("category",),
    "source": ("source", "data_source"),
    "license": ("license",),
}
LANGUAGES = {"EN": "en", "CN": "zh", "ZH": "zh"}
READ_ROWS = 32  # rows in memory at once
FOOTERS = 16  # footers read at once: on a parallel file system they are waited for


@dataclass(frozen=True)
class _Place:
    """What the path of a file says."""

    source: str
    language: str


def list_units(data: DataRecipe) -> Listing:
    """Units of row groups, as many as make at most `data.shard_samples` rows, or one that has more.

    The digest is of the files' names, bytes and row groups (rows, bytes and places of the columns).

    Raises:
        InputError: there are no Parquet files, the first that can be read lacks the columns, or one is a link that
            leads nowhere.
    """
    source = Path(data.source)
    files = files_below(source, ".parquet")
    if not files:
        raise InputError(f"{source} holds no *.parquet: data.source must name a folder of Parquet files")
    with ThreadPoolExecutor(FOOTERS) as pool:
        footers = list(pool.map(_footer, files))
    names = [path.relative_to(_folder(data)).as_posix() for path in files]
    units: list[Unit] = []
    checked = False
    for name, path, groups in zip(names, files, footers, strict=True):
        if groups and not checked:
            _columns(pq.read_schema(path), data, path)
            checked = True
        units += _units(name, [rows for rows, _ in groups], data.shard_samples) if groups else [Unit(name)]
    states = [[name, file_size(path), groups] for name, path, groups in zip(names, files, footers, strict=True)]
    return Listing(tuple(units), value_digest(states))


def read_unit(data: DataRecipe, unit: Unit) -> Iterator[Record | Rejected]:
    """The records of a unit in the order of their rows; rows that cannot be read are rejected one by one.

    Raises:
        InputError: the file is gone, or it lacks the columns.
    """
    path = _folder(data) / unit.file
    open_text(path).close()
    stem, place = unit.file.removesuffix(".parquet"), _place(unit.file, _folder(data).resolve())
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        yield Rejected(stem, "file_unreadable", _line(error))
        return
    with file:
        columns = _columns(file.schema_arrow, data, path)
        number = unit.first
        for group in range(unit.begin, unit.end):
            last = number + file.metadata.row_group(group).num_rows
            try:
                batches = file.iter_batches(READ_ROWS, row_groups=[group], columns=list(columns.values()))
                for batch in batches:
                    for fields in batch.to_pylist():
                        row = {role: fields[column] for role, column in columns.items()}
                        yield _record(row, f"{stem}/{number}", place)
                        number += 1
            except (pa.ArrowException, OSError) as error:
                for lost in range(number, last):
                    yield Rejected(f"{stem}/{lost}", "parquet_unreadable", _line(error))
            number = last


def _footer(path: Path) -> list[tuple[int, list[int]]]:
    """Rows of each row group, and the places of its columns; an unreadable file has none."""
    try:
        meta = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return []
    groups = [meta.row_group(k) for k in range(meta.num_row_groups)]
    return [
        (group.num_rows, [n for c in range(group.num_columns) for n in _chunk(group.column(c))]) for group in groups
    ]


def _chunk(column: Any) -> tuple[int, int, int]:
    return column.data_page_offset, column.total_compressed_size, column.total_uncompressed_size


def _units(name: str, rows: list[int], most: int) -> list[Unit]:
    units = []
    begin = first = 0
    for group in range(len(rows)):
        if group + 1 == len(rows) or sum(rows[begin : group + 2]) > most:
            last = first + sum(rows[begin : group + 1])
            if last > first:
                units.append(Unit(name, first, last - 1, begin, group + 1))
            begin, first = group + 1, last
    return units


def _columns(schema: pa.Schema, data: DataRecipe, path: Path) -> dict[str, str]:
    """The names of the columns by what they hold."""
    given = dict(entry.split("=", 1) for entry in data.columns)
    found = {}
    for role, names in COLUMNS.items():
        name = next((name for name in ([given[role]] if role in given else names) if name in schema.names), None)
        if name is not None:
            found[role] = name
        elif role in given:
            raise InputError(f"{path} has no column {given[role]!r} (data.columns); it has {', '.join(schema.names)}")
    if "caption" not in found and "turns" not in found:
        raise InputError(
            f"{path} has no column of captions or conversations; it has {', '.join(schema.names)}: "
            "name it with data.columns=[caption=NAME] or data.columns=[turns=NAME]"
        )
    if "image" not in found and "turns" not in found:
        raise InputError(
            f"{path} has no column of images; it has {', '.join(schema.names)}: name it with data.columns=[image=NAME]"
        )
    return found


def _record(row: dict[str, Any], place: str, path: _Place) -> Record | Rejected:
    name = row["id"] if isinstance(row.get("id"), (str, int)) and row["id"] != "" else place
    try:
        images = _images(row.get("image"))
        if isinstance(row.get("turns"), list):
            return conversation_record(row, row["turns"], images, place, path.source, path.language)
        if len(images) != 1:
            raise Reject("image_count", f"{len(images)} images with one caption")
        caption = row.get("caption")
        if isinstance(caption, list) and len(caption) == 1:
            caption = caption[0]
        return caption_record(row, caption, row.get("prompt"), images[0], place, path.source, path.language)
    except Reject as error:
        return Rejected(str(name), error.reason, f"{place}: {error.detail}")


def _images(value: Any) -> tuple[bytes, ...]:
    if value is None:
        return ()
    return tuple(_image(item) for item in (value if isinstance(value, list) else [value]))


def _image(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if not value:
        raise Reject("image_missing", "the row has no bytes of an image")
    if not isinstance(value, bytes):
        raise Reject("bad_field", f"an image is {type(value).__name__}, not bytes")
    return value


def _folder(data: DataRecipe) -> Path:
    source = Path(data.source)
    return source.parent if source.is_file() else source


def _place(name: str, folder: Path) -> _Place:
    """Source and language of a file of this name in the source, which is `folder`; the folders above it count too. A
    link in the source counts by its own name: in Hugging Face's cache every file is one to a name that says nothing."""
    folders = (folder / name).parts[:-1]
    known = [k for k, folder in enumerate(folders) if folder in LANGUAGES]
    if known:
        return _Place(folders[known[-1] - 1], LANGUAGES[folders[known[-1]]])
    first = Path(name).parts[0]
    return _Place(first if first != Path(name).name else folders[-1], "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
