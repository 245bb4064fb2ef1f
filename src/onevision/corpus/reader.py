"""Reading records straight from the tar shards by byte offset: random access without a second copy of the data."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import xxhash

from onevision.corpus.index import CorpusIndex
from onevision.corpus.record import Record, Reject, parse_record
from onevision.errors import DataError

OPEN_SHARDS = 128  # files kept open


class CorpusReader:
    """A corpus folder. Several threads may read from it at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = CorpusIndex.open(folder)
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()  # by shard number, least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def record(self, i: int) -> Record:
        """The record of row `i`, with its images as they came in.

        Raises:
            IndexError: there is no such row.
            DataError: the shard does not hold what was written into it.
        """
        index = self.index
        if not 0 <= i < len(index):
            raise IndexError(f"row {i} of {len(index)}")
        shard = int(index.shard[i])
        text = self._read(shard, int(index.json_offset[i]), int(index.json_size[i]))
        rows = range(index.image_start[i], index.image_start[i + 1])
        images = tuple(self._read(shard, int(index.image_offset[row]), int(index.image_size[row])) for row in rows)
        if content_hash(text, images) != index.content_hash[i]:
            raise self._damage(shard, int(index.json_offset[i]), f"sample {index.id[i].decode()} was changed")
        try:
            return parse_record(json.loads(text), images)
        except Reject as error:
            raise self._damage(shard, int(index.json_offset[i]), str(error)) from None

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        with self._lock:
            self._open.clear()

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        file = self._shard(shard, offset)
        data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise self._damage(shard, offset, f"{len(data)} of {size} bytes are there")
        return data

    def _shard(self, shard: int, offset: int) -> BinaryIO:
        """The opened shard. A file that leaves the cache is closed when the last thread that reads it lets it go."""
        with self._lock:
            if shard not in self._open:
                try:
                    self._open[shard] = (self.folder / self.index.shards[shard]).open("rb", buffering=0)
                except OSError as error:
                    raise self._damage(shard, offset, str(error.strerror)) from None
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard]

    def _damage(self, shard: int, offset: int, found: str) -> DataError:
        name = self.folder / self.index.shards[shard]
        return DataError(f"{name} at byte {offset}: {found}; run `make corpus` again")


def content_hash(text: bytes, images: tuple[bytes, ...]) -> int:
    """xxh3_64 of a sample's JSON and of the bytes of its images, in order."""
    state = xxhash.xxh3_64(text)
    for image in images:
        state.update(image)
    return state.intdigest()
