"""Writing WebDataset tar shards whose bytes depend on nothing but the samples.

They are written with `tarfile`, as the webdataset package itself does: importing that package loads torch, which each
rank of the data steps would wait two seconds for.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarFile, TarInfo
from types import TracebackType


class ShardWriter:
    """Writes samples into one tar file, which has its name once it is whole. Sample i of shard k has the key `k-i`."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._samples = 0

    def __enter__(self) -> ShardWriter:
        self._file = self._temporary.open("wb")
        self._tar = TarFile(fileobj=self._file, mode="w", format=USTAR_FORMAT)
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
        offsets = {}
        for name in sorted(members):
            header = TarInfo(f"{self.number:06d}-{self._samples:06d}.{name}")
            header.size = len(members[name])
            header.mode = 0o444
            header.uname = header.gname = "onevision"
            offsets[name] = self._tar.offset + BLOCKSIZE
            self._tar.addfile(header, BytesIO(members[name]))
        self._samples += 1
        return offsets
