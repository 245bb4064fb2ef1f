"""A unit of the source becomes a part of the corpus: a tar shard, and a file of the columns of its samples.

`part-<k>.h5` holds the columns of `onevision.corpus.index` for the samples of `shard-<k>.tar`, and beside them

    /samples/  id_hash u8 (xxh3_64 of the id), image_count i4; category, language, source, license i2 into the part's
               own /tables/
    /tables/   category, language, source, license: S<n>
    /rejects   u1: JSON lines {id, reason, detail} of what was not taken
    attributes format_version, unit (what was read), fingerprint (of all columns)
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.corpus import hdf5
from onevision.corpus.filters import check_pixels, check_texts, filtered
from onevision.corpus.formats import Rejected, Unit
from onevision.corpus.formats.unit import MAX_DETAIL
from onevision.corpus.header import read_header
from onevision.corpus.index import FORMAT_VERSION, IMAGES, SAMPLES, TABLES
from onevision.corpus.reader import content_hash
from onevision.corpus.record import MAX_ID_BYTES, Record, Reject, record_fields
from onevision.corpus.shards import ShardWriter
from onevision.data.image import MERGE, ImageError, ImageHeader, patch_grid
from onevision.data.template import text_token_counts
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError
from onevision.recipe import DataRecipe

BATCH = 64  # records whose images are in memory at once
MAX_NAMES = 32_767  # categories, languages, sources, licenses: their numbers are 16-bit
PART_SAMPLES = {"id_hash": "<u8", "image_count": "<i4", **SAMPLES, **dict.fromkeys(TABLES, "<i2")}


@dataclass(frozen=True)
class Measured:
    """A record that is taken: the headers of its images and the tokens that they become."""

    record: Record
    headers: list[ImageHeader]
    vision_tokens: int


def part_name(k: int) -> str:
    """The file of the columns of part k."""
    return f"part-{k:06d}.h5"


def shard_name(k: int) -> str:
    """The tar shard of part k."""
    return f"shard-{k:06d}.tar"


def build_part(
    folder: Path, k: int, unit: Unit, items: Iterable[Record | Rejected], data: DataRecipe, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Write the shard and the columns of part k from what was read of its unit.

    Returns:
        shard_bytes; samples; rejected; source: a digest of all that was read, down to the bytes of the images.

    Raises:
        DataError: the records name too many different categories, languages, sources or licenses.
    """
    columns = Columns()
    rejects: list[Rejected] = []
    seen: set[str] = set()
    with ShardWriter(folder / shard_name(k), k) as shard:
        for batch in _batches(items):
            taken: list[Measured] = []
            for item in batch:
                found = take(item, data, seen) if isinstance(item, Record) else item
                (rejects if isinstance(found, Rejected) else taken).append(found)  # type: ignore[arg-type]
            texts = text_token_counts([measured.record for measured in taken], tokenizer)
            for measured, tokens in zip(taken, texts, strict=True):
                columns.add(measured, tokens, shard, k)
    write_columns(folder / part_name(k), unit.name, columns.arrays(), columns.names(), reject_lines(rejects))
    state = xxhash.xxh3_128(np.array(columns.samples["content_hash"], "<u8").tobytes())
    state.update(reject_lines(rejects))
    size = (folder / shard_name(k)).stat().st_size
    return {
        "shard_bytes": size,
        "samples": len(columns.ids),
        "rejected": len(rejects),
        "source": state.hexdigest(),
    }


def take(record: Record, data: DataRecipe, seen: set[str]) -> Measured | Rejected:
    """Measure the images of a record and apply the filters; an id that is in `seen` is a duplicate."""
    try:
        if record.id in seen:
            raise Reject("duplicate_id", "an earlier record has this id")
        if filtered(data):
            check_texts(record, data)
        headers = []
        vision_tokens = 0
        for k, image in enumerate(record.images):
            try:
                header, pixels = read_header(image)
                rows, columns = patch_grid(header.width, header.height, data.min_pixels, data.max_pixels)
                check_pixels(image, header, pixels, data)
            except ImageError as error:
                raise Reject(error.reason, f"image {k}: {error.detail}") from None
            headers.append(header)
            vision_tokens += rows * columns // MERGE**2
    except Reject as error:
        return Rejected(record.id, error.reason, error.detail)
    seen.add(record.id)
    return Measured(record, headers, vision_tokens)


class Columns:
    """The columns of a part as they grow."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.samples = {name: array("Q" if dtype == "<u8" else "q") for name, dtype in PART_SAMPLES.items()}
        self.images = {name: array("q") for name in IMAGES}
        self.tables: dict[str, dict[str, int]] = {name: {} for name in TABLES}

    def add(self, measured: Measured, text_tokens: int, shard: ShardWriter, k: int) -> None:
        """Write the sample into the shard and append its row."""
        record = measured.record
        text = json.dumps(record_fields(record), ensure_ascii=False, separators=(",", ":")).encode()
        names = [f"{number}.{header.suffix}" for number, header in enumerate(measured.headers)]
        places = shard.add({"json": text, **dict(zip(names, record.images, strict=True))})
        name = record.id.encode()
        row = {
            "id_hash": xxhash.xxh3_64_intdigest(name),
            "image_count": len(names),
            "shard": k,
            "json_offset": places["json"],
            "json_size": len(text),
            "text_tokens": text_tokens,
            "vision_tokens": measured.vision_tokens,
            "content_hash": content_hash(text, record.images),
        }
        row |= {table: number_of(self.tables[table], table, getattr(record, table)) for table in TABLES}
        self.ids.append(name)
        for column, value in row.items():
            self.samples[column].append(value)
        for header, image, member in zip(measured.headers, record.images, names, strict=True):
            place = {"offset": places[member], "size": len(image), "width": header.width, "height": header.height}
            for column, value in place.items():
                self.images[column].append(value)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The columns by their names in the file."""
        found = {f"samples/{name}": np.array(self.samples[name], dtype) for name, dtype in PART_SAMPLES.items()}
        found |= {f"images/{name}": np.array(self.images[name], dtype) for name, dtype in IMAGES.items()}
        return found | {"samples/id": np.array(self.ids, "S")}

    def names(self) -> dict[str, NDArray[Any]]:
        """The part's own tables by their names in the file."""
        tables = {name: [value.encode() for value in values] for name, values in self.tables.items()}
        return {f"tables/{name}": np.array(values, "S") for name, values in tables.items()}


def number_of(table: dict[str, int], name: str, value: str) -> int:
    """The number of a value in its table, which it enters when it is new.

    Raises:
        DataError: the table is full.
    """
    if value not in table and len(table) == MAX_NAMES:
        raise DataError(f"the records name more than {MAX_NAMES:,} different values of {name!r}")
    return table.setdefault(value, len(table))


def write_columns(
    path: Path, unit: str, columns: Mapping[str, NDArray[Any]], names: Mapping[str, NDArray[Any]], rejects: bytes
) -> None:
    """Write a part file."""
    contents = {**columns, **names, "rejects": np.frombuffer(rejects, "u1")}
    state = xxhash.xxh3_128()
    for name in sorted(contents):
        state.update(name.encode())
        state.update(np.ascontiguousarray(contents[name]).tobytes())
    attributes = {"format_version": FORMAT_VERSION, "unit": unit, "fingerprint": state.hexdigest()}
    hdf5.write_part(path, contents, attributes)


def without_rows(path: Path, rows: NDArray[np.int64], reason: str, detail: str) -> None:
    """Move rows of a part file from its columns to its rejects; their bytes stay in the shard."""
    unit, columns, names, rejects = _read_part(path)
    kept = np.ones(len(columns["samples/id"]), bool)
    kept[rows] = False
    dropped = [Rejected(name.decode(), reason, detail) for name in columns["samples/id"][rows].tolist()]
    write_columns(path, unit, _rows(columns, kept), names, rejects + reject_lines(dropped))


def select_rows(path: Path, kept: NDArray[np.bool_], target: Path) -> str:
    """Write the rows of a part file for which `kept` [n] is true as a part file of its own, over the same shard; what
    was rejected before is not repeated in it. Returns the fingerprint of the part that was read.
    """
    unit, columns, names, _ = _read_part(path)
    write_columns(target, unit, _rows(columns, kept), names, b"")
    with h5py.File(path, "r") as file:
        return str(file.attrs["fingerprint"])


def part_column(path: Path, name: str) -> NDArray[Any]:
    """A column of the samples of a part file."""
    with h5py.File(path, "r") as file:
        values: NDArray[Any] = file[f"samples/{name}"][()]
    return values


def _read_part(path: Path) -> tuple[str, dict[str, NDArray[Any]], dict[str, NDArray[Any]], bytes]:
    """Unit, columns, tables and rejects of a part file."""
    with h5py.File(path, "r") as file:
        columns = [*(f"samples/{name}" for name in ("id", *PART_SAMPLES)), *(f"images/{name}" for name in IMAGES)]
        contents = {name: file[name][()] for name in columns}
        names = {f"tables/{name}": file[f"tables/{name}"][()] for name in TABLES}
        return str(file.attrs["unit"]), contents, names, file["rejects"][()].tobytes()


def _rows(columns: Mapping[str, NDArray[Any]], kept: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The columns of a part with only the samples that are kept, and their images."""
    images = np.repeat(kept, columns["samples/image_count"])
    return {name: values[kept if name.startswith("samples/") else images] for name, values in columns.items()}


def reject_lines(rejects: Iterable[Rejected]) -> bytes:
    """Rejects as JSON lines; long texts are cut."""
    lines = (
        json.dumps(
            {"id": reject.id[:MAX_ID_BYTES], "reason": reject.reason, "detail": reject.detail[:MAX_DETAIL]},
            ensure_ascii=False,
        )
        for reject in rejects
    )
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")


def _batches(items: Iterable[Record | Rejected]) -> Iterator[list[Record | Rejected]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
