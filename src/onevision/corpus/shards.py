"""Writing WebDataset tar shards whose bytes depend on nothing but the samples."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tarfile import BLOCKSIZE
from types import TracebackType

from webdataset import TarWriter


class ShardWriter:
    """Writes samples into one tar file, which has its name once it is whole. Sample i of shard k has the key `k-i`."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._samples = 0

    def __enter__(self) -> ShardWriter:
        self._file = self._temporary.open("wb")
        self._tar = TarWriter(self._file, user="onevision", group="onevision", mtime=0, encoder=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with self._file:
                self._tar.close()
            self._temporary.replace(self.path)
            return
        with suppress(OSError), self._file:  # the error on its way out is the one to tell
            self._tar.close()

    def add(self, members: dict[str, bytes]) -> dict[str, int]:
        """Write the members of the next sample; returns the byte offset of each one's data."""
        position = self._tar.tarstream.offset
        self._tar.write({"__key__": f"{self.number:06d}-{self._samples:06d}", **members})
        self._samples += 1
        offsets = {}
        for name in sorted(members):  # the writer's order: a header block, then the data in whole blocks
            offsets[name] = position + BLOCKSIZE
            position += BLOCKSIZE + -(-len(members[name]) // BLOCKSIZE) * BLOCKSIZE
        assert position == self._tar.tarstream.offset, "the tar writer laid out a sample in another way"
        return offsets
