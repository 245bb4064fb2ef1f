"""Fingerprints: 128-bit xxh3 of files and of plain values, as 32 hexadecimal digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import Any, TypeVar

import xxhash

T = TypeVar("T")

BLOCK = 8 << 20  # bytes that are read at once
FILES_AT_ONCE = 8


def bytes_digest(data: bytes) -> str:
    """Digest of a byte string."""
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(path: str | Path) -> str:
    """Digest of a file's content, read in 8 MiB blocks."""
    state = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def for_each_file(function: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    """The results of a function that reads a file, in the order of the files, of which several are read at once: a
    checkpoint has large ones, and all ranks wait for its digests."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return list(pool.map(function, paths))


class Digests:
    """Digests of files, found by a thread in their order while somebody else reads the same files.

    The thread stays less than `ahead` bytes in front of the reader, who says how far it is: so what one of them has
    brought into the page cache the other finds there, and the disk is read once. At the end of the `with` block the
    thread ends, finished or not.
    """

    def __init__(self, paths: Sequence[str | Path], ahead: int = 1 << 28) -> None:
        self._paths = [Path(path) for path in paths]
        self._digests: dict[Path, str] = {}
        self._error: OSError | None = None
        self._changed = Condition()
        self._ahead = ahead  # bytes that the thread may still read
        self._unbound = self._stopped = False
        self._thread = Thread(target=self._run, name="digests", daemon=True)

    def __enter__(self) -> Digests:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def read(self, count: int) -> None:
        """The reader has read `count` bytes more."""
        with self._changed:
            self._ahead += count
            self._changed.notify()

    def result(self) -> dict[Path, str]:
        """Digest of each file, once all are there.

        Raises:
            OSError: a file could not be read.
        """
        with self._changed:
            self._unbound = True
            self._changed.notify()
        self._thread.join()
        if self._error:
            raise self._error
        return self._digests

    def _run(self) -> None:
        try:
            for path in self._paths:
                state = xxhash.xxh3_128()
                with path.open("rb") as file:
                    while block := file.read(BLOCK):
                        state.update(block)
                        if not self._may_go_on(len(block)):
                            return
                self._digests[path] = state.hexdigest()
        except OSError as error:
            self._error = error

    def _may_go_on(self, count: int) -> bool:
        with self._changed:
            self._ahead -= count
            self._changed.wait_for(lambda: self._ahead > 0 or self._unbound or self._stopped)
            return not self._stopped


def value_digest(value: Any) -> str:
    """Digest of a JSON-serialisable value; the order of dictionary keys does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return bytes_digest(text.encode(errors="surrogatepass"))


def folder_digest(folder: str | Path, pattern: str = "**/*") -> str:
    """Digest of the names and contents of the files below a folder."""
    root = Path(folder)
    files = sorted(path for path in root.glob(pattern) if path.is_file())
    return value_digest([[path.relative_to(root).as_posix(), file_digest(path)] for path in files])
