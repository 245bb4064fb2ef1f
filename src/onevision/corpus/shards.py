"""Writing WebDataset tar shards whose bytes depend on nothing but the samples."""

from __future__ import annotations

from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from tarfile import BLOCKSIZE
from types import TracebackType

from webdataset import TarWriter


class ShardWriter:
    """Writes samples into `shard-000000.tar`, …, `shard_samples` in each; the key of a sample is its row number.

    `names` and `sizes` (bytes) of the shards are complete once the writer is closed.
    """

    def __init__(self, folder: Path, shard_samples: int) -> None:
        self.folder = folder
        self.shard_samples = shard_samples
        self.names: list[str] = []
        self.sizes: list[int] = []
        self._samples = 0
        self._file: BufferedWriter | None = None
        self._tar: TarWriter | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
        else:
            with suppress(OSError):  # the error on its way out is the one to tell
                self._close_shard()

    def add(self, members: dict[str, bytes]) -> dict[str, int]:
        """Write the members of the next sample; returns the byte offset of each one's data in the newest shard."""
        if self._samples % self.shard_samples == 0:
            self._close_shard()
            self._open_shard()
        assert self._tar is not None
        position = self._tar.tarstream.offset
        self._tar.write({"__key__": f"{self._samples:09d}", **members})
        self._samples += 1
        offsets = {}
        for name in sorted(members):  # the writer's order: a header block, then the data in whole blocks
            offsets[name] = position + BLOCKSIZE
            position += BLOCKSIZE + -(-len(members[name]) // BLOCKSIZE) * BLOCKSIZE
        assert position == self._tar.tarstream.offset, "the tar writer laid out a sample in another way"
        return offsets

    def _open_shard(self) -> None:
        name = f"shard-{len(self.names):06d}.tar"
        self._file = (self.folder / name).open("wb")
        self._tar = TarWriter(self._file, user="onevision", group="onevision", mtime=0, encoder=False)
        self.names.append(name)

    def _close_shard(self) -> None:
        if self._tar is None or self._file is None:
            return
        tar, self._tar = self._tar, None
        with self._file:
            tar.close()
        self.sizes.append((self.folder / self.names[-1]).stat().st_size)
