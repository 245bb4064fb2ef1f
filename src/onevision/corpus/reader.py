"""Reading records straight from the tar shards by byte offset: random access without a second copy of the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.corpus.index import CorpusIndex
from onevision.corpus.record import Record, Reject, parse_record
from onevision.corpus.store import open_store, read_range
from onevision.errors import DataError

GAP = 64 * 1024  # bytes between the members of a sample that are read along, at most, to read it at once
Span = tuple[int, int]  # offset and bytes


@dataclass(frozen=True)
class Entry:
    """What the index knows of one sample: where it lies and how long it is."""

    row: int
    shard: str
    text: Span  # its JSON
    images: tuple[Span, ...]
    sizes: tuple[tuple[int, int], ...]  # width and height of each image, pixels
    tokens: int
    category: int  # into the index's categories
    content_hash: int


class DamagedSample(DataError):
    """A sample whose bytes are not those that were written; `detail` is the message without the shard's name."""

    def __init__(self, place: str, detail: str) -> None:
        super().__init__(f"{place} {detail}; run `make corpus` again")
        self.detail = detail


class CorpusReader:
    """A corpus folder. Several threads may read from it at once."""

    def __init__(self, folder: str | Path, shards: str = "") -> None:
        """`shards` is the folder or URL of the tar shards where they do not lie where `corpus.h5` says.

        Raises:
            InputError: there is no corpus.h5, it has another format, or `shards` is no place that can be read.
            DataError: corpus.h5 is damaged, or a shard is missing, truncated or too long.
        """
        self.folder = Path(folder)
        self.index = CorpusIndex.open(folder, check_shards=not shards)
        self.store = open_store(shards or self.index.shard_path)
        if shards:
            self._check_shards()

    def __len__(self) -> int:
        return len(self.index)

    def record(self, i: int) -> Record:
        """The record of row `i`, with its images as they came in.

        Raises:
            IndexError: there is no such row.
            DamagedSample: the shard does not hold what was written into it.
            DataError: the shard is missing or cannot be read.
        """
        if not 0 <= i < len(self.index):
            raise IndexError(f"row {i} of {len(self.index)}")
        return self.read(self.entries([i])[0])

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        """What the index knows of some rows; looked up together, which is cheaper than one by one."""
        index, at = self.index, np.asarray(rows, np.int64)
        first, last = index.image_start[at], index.image_start[at + 1]
        count = last - first
        images = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
        spans = _pairs(index.image_offset[images], index.image_size[images])
        sizes = _pairs(index.image_width[images], index.image_height[images])
        self._check_places(at, images, first, last)
        ends = np.cumsum(count).tolist()
        samples = zip(
            at.tolist(),
            index.shard[at].tolist(),
            _pairs(index.json_offset[at], index.json_size[at]),
            (slice(end - n, end) for end, n in zip(ends, count.tolist(), strict=True)),
            (index.text_tokens[at].astype(np.int64) + index.vision_tokens[at]).tolist(),
            index.category[at].tolist(),
            index.content_hash[at].tolist(),
            strict=True,
        )
        return [
            Entry(row, index.shards[shard], text, spans[own], sizes[own], tokens, category, content)
            for row, shard, text, own, tokens, category, content in samples
        ]

    def _check_places(self, rows: NDArray[np.int64], images: NDArray[np.int64], *starts: NDArray[np.int64]) -> None:
        """Refuse rows of which the index says that they lie outside their shard.

        Raises:
            DataError: naming the first.
        """
        index = self.index
        shard, count = index.shard[rows], starts[1] - starts[0]
        known = (shard >= 0) & (shard < len(index.shards))
        room = index.shard_bytes[np.where(known, shard, 0)]
        begin, size = index.json_offset[rows], index.json_size[rows]
        inside = known & (begin >= 0) & (size >= 0) & (size <= room - begin)
        begin, size = index.image_offset[images], index.image_size[images]
        beyond = (begin < 0) | (size < 0) | (size > np.repeat(room, count) - begin)
        inside[np.repeat(np.arange(len(rows)), count)[beyond]] = False
        if not inside.all():
            row = int(rows[np.flatnonzero(~inside)[0]])
            raise DataError(f"{index.path} is damaged (row {row} lies outside its shard): run `make corpus` again")

    def read(self, entry: Entry) -> Record:
        """The record of an entry, as `record`."""
        text, *images = self.members(entry)
        try:
            return parse_record(json.loads(bytes(text)), tuple(map(bytes, images)))
        except Reject as error:
            raise self._damage(entry, str(error)) from None

    def read_text(self, entry: Entry) -> Record:
        """The record of an entry with empty bytes for images: only its JSON is read, which is not checked by its hash.

        Raises:
            DamagedSample: there is no record at its place.
            DataError: as `record`.
        """
        try:
            fields = json.loads(self._range(entry, *entry.text))
            return parse_record(fields, (b"",) * len(entry.images))
        except (Reject, ValueError) as error:
            raise self._damage(entry, str(error)) from None

    def members(self, entry: Entry) -> list[memoryview]:
        """The JSON and the images of an entry, as they were written: with one read, of which they are views, where they
        lie together, as they do when samples were written one by one.

        Raises:
            DamagedSample, DataError: as `record`.
        """
        spans = [entry.text, *entry.images]
        start, end = min(spans)[0], sum(max(spans))  # members do not overlap
        if end - start > sum([size for _, size in spans]) + GAP:
            found = [memoryview(self._range(entry, *span)) for span in spans]
        else:
            data = memoryview(self._range(entry, start, end - start))
            found = [data[offset - start : offset - start + size] for offset, size in spans]
        if content_hash(found[0], found[1:]) != entry.content_hash:
            raise self._damage(entry, f"sample {self.id(entry.row)} was changed")
        return found

    def id(self, row: int) -> str:
        """The id of a sample."""
        return self.index.id[row].decode()

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        self.store.close()

    def _range(self, entry: Entry, offset: int, size: int) -> bytes:
        data = read_range(self.store, entry.shard, offset, size)
        if len(data) != size:
            raise self._damage(entry, f"{len(data)} of {size} bytes are there", offset)
        return data

    def _damage(self, entry: Entry, found: str, offset: int | None = None) -> DamagedSample:
        where = entry.text[0] if offset is None else offset
        return DamagedSample(self.store.place(entry.shard), f"at byte {where}: {found}")

    def _check_shards(self) -> None:
        index = self.index
        found = self.store.sizes(index.shards)
        for name, size in zip(index.shards, index.shard_bytes.tolist(), strict=True):
            place = self.store.place(name)
            if name not in found:
                raise DataError(f"{place} is missing, {index.path} says {size} bytes: copy the corpus' shards there")
            if found[name] not in (size, None):
                raise DataError(f"{place} has {found[name]} bytes, {index.path} says {size}: copy it there again")


def content_hash(text: bytes | memoryview, images: Sequence[bytes | memoryview]) -> int:
    """xxh3_64 of a sample's JSON and of the bytes of its images, in order."""
    state = xxhash.xxh3_64(text)
    for image in images:
        state.update(image)
    return state.intdigest()


def _pairs(one: NDArray[np.integer], other: NDArray[np.integer]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(one.tolist(), other.tolist(), strict=True))
