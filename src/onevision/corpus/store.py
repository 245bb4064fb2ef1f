"""Where tar shards lie, and reading byte ranges of them: a folder, local or of a parallel file system, or an object
store that fsspec knows (`s3://bucket/corpus`, `gs://…`, `memory://…`).

The index is mapped into memory and stays local; only the shards, which are all that is large, may lie elsewhere.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import fsspec

from onevision.errors import DataError, InputError

OPEN_SHARDS = 128  # files kept open
WAITS = (0.25, 1.0, 4.0)  # seconds before a read is tried again


class ShardStore(Protocol):
    """A place of shards. Several threads may read from it at once."""

    def place(self, name: str) -> str:
        """Path or URL of a shard, for messages."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a shard; fewer where it ends. Raises what the system or the library raises."""

    def sizes(self, names: Sequence[str]) -> Mapping[str, int | None]:
        """Bytes of those shards that are there; None where the store does not tell."""

    def close(self) -> None:
        """Let go of what is open; the next read opens it again."""


def open_store(where: str | Path) -> ShardStore:
    """The store at a folder or URL.

    Raises:
        InputError: fsspec does not know the URL's protocol, or lacks a package for it.
    """
    return RemoteShards(where) if isinstance(where, str) and "://" in where else LocalShards(Path(where))


def read_range(store: ShardStore, name: str, offset: int, size: int) -> bytes:
    """Bytes of a shard; fewer where it ends. What may be transient (a cut connection, an input/output error of a file
    system) is tried again, after `WAITS`.

    Raises:
        DataError: the shard is missing or may not be read, or the last try failed.
    """
    for wait in (*WAITS, None):
        try:
            return store.read(name, offset, size)
        except (FileNotFoundError, PermissionError) as error:
            raise _unreadable(store, name, offset, error, "") from None
        except Exception as error:  # every backend of fsspec has errors of its own
            if wait is None:
                raise _unreadable(store, name, offset, error, f" ({len(WAITS) + 1} tries)") from None
            store.close()  # a handle may be stale
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


class LocalShards:
    """Shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        # The file is held until the read ends: one that leaves the cache meanwhile is closed after that.
        file = self._file(name)
        return os.pread(file.fileno(), size, offset)

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        paths = {name: self.folder / name for name in names}
        return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _file(self, name: str) -> BinaryIO:
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
            else:
                self._open[name] = (self.folder / name).open("rb", buffering=0)
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            return self._open[name]


class RemoteShards:
    """Shards below a URL: every read is one range request."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise InputError(f"shards at {url} cannot be read: {_line(error)}") from None

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self._files.cat_file(f"{self._root}/{name}", start=offset, end=offset + size)

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        """As in the protocol, from listings of their folders: an object store answers those a thousand names at a time.

        Raises:
            DataError: the store does not answer.
        """
        folders = sorted({f"{self._root}/{name}".rpartition("/")[0] for name in names})
        found = {}
        for folder in folders:
            try:
                entries = self._files.ls(folder, detail=True)
            except FileNotFoundError:
                continue
            except Exception as error:  # every backend has errors of its own
                raise DataError(f"{self.url} cannot be listed: {_line(error)}") from None
            found.update({entry["name"].rstrip("/"): entry.get("size") for entry in entries})
        paths = {name: f"{self._root}/{name}" for name in names}
        return {name: found[path] for name, path in paths.items() if path in found}

    def close(self) -> None:
        pass


def _unreadable(store: ShardStore, name: str, offset: int, error: Exception, tries: str) -> DataError:
    return DataError(f"{store.place(name)} at byte {offset} cannot be read: {_line(error)}{tries}")


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
