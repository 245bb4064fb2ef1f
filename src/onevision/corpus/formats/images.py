"""The image files that records name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onevision.corpus.record import Reject


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


def image_states(root: Path, names: Callable[[], list[str]]) -> bytes:
    """What tells changed image files of a record without reading them: their names and bytes, or what the system said.
    Nothing if `names` raises Reject."""
    try:
        return "".join(_state(root, name) for name in names()).encode(errors="replace")
    except Reject:
        return b""


def _state(root: Path, name: str) -> str:
    try:
        return f"{name} {(root / name).stat().st_size}\n"
    except OSError as error:
        return f"{name} {error.strerror}\n"
