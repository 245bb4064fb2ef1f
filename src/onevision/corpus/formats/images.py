"""The image files that records name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from onevision.corpus.record import Reject

THREADS = 32  # a network's file system answers as many questions in the time of one
CHUNK = 256  # names that a thread asks for in a row
SLOW = 50e-6  # seconds for one; a local disk answers faster than threads take turns


def check_names(names: object) -> list[str]:
    """The names of a record's images.

    Raises:
        Reject: they are no list of names of files inside the folder.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Reject("bad_field", "images is not a list of file names")
    for name in names:
        path = Path(name)
        if not name.isprintable() or not path.parts or path.is_absolute() or ".." in path.parts:
            raise Reject("image_path", f"{name!r} is not a path inside the folder")
    return names


def read_image(root: Path, name: str) -> bytes:
    """The bytes of an image file.

    Raises:
        Reject: it is missing or unreadable.
    """
    try:
        return (root / name).read_bytes()
    except FileNotFoundError:
        raise Reject("image_missing", f"{name} does not exist") from None
    except OSError as error:
        raise Reject("image_unreadable", f"{name}: {error.strerror}") from None


class ImageStates:
    """What tells changed image files without reading them: their names and bytes, or what the system said. It goes to
    `update`, in the order of the names, and is complete after `flush`, or when the `with` block has ended."""

    def __init__(self, root: Path, update: Callable[[bytes], object]) -> None:
        self._root, self._update = root, update
        self._names: list[str] = []
        self._pool = ThreadPoolExecutor(THREADS)

    def __enter__(self) -> ImageStates:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with self._pool:
            if kind is None:
                self.flush()

    def add(self, names: Callable[[], list[str]]) -> None:
        """The images of a record; none if `names` raises Reject."""
        try:
            self._names += names()
        except Reject:
            return
        if len(self._names) >= THREADS * CHUNK:
            self.flush()

    def flush(self) -> None:
        """Ask for all that were added."""
        names, self._names = self._names, []
        chunks = [names[first : first + CHUNK] for first in range(0, len(names), CHUNK)]
        began = time.perf_counter()
        for states in map(self._states, chunks[:1]):
            self._update(states)
        slow = time.perf_counter() - began > SLOW * len(names[:CHUNK])
        for states in (self._pool.map if slow else map)(self._states, chunks[1:]):
            self._update(states)

    def _states(self, names: Sequence[str]) -> bytes:
        return "".join(_state(self._root, name) for name in names).encode(errors="replace")


def _state(root: Path, name: str) -> str:
    try:
        return f"{name} {(root / name).stat().st_size}\n"
    except OSError as error:
        return f"{name} {error.strerror}\n"
