"""Images named in a line that a person types, pastes or drops into a terminal."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from onevision.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# A word as a shell reads it: quoted parts, escaped characters. One with an unpaired quote, such as "what's", is none.
_WORD = re.compile(r"""(?<!\S)(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\])+(?!\S)""")


@dataclass(frozen=True)
class Line:
    """A line cut at its images: a piece is text, or the path of an image."""

    pieces: tuple[str | Path, ...]

    @property
    def paths(self) -> list[Path]:
        """The images, in order."""
        return [piece for piece in self.pieces if isinstance(piece, Path)]


def read_line(line: str) -> Line:
    """Find the images of a line: `file://` addresses, and words that end like an image's name, also in quotes or with
    escaped blanks, as terminals write what is dropped on them.

    Images at the end of the line are moved before the text, where training has them; those amid text stay.
    """
    pieces: list[str | Path] = []
    end = 0
    for word in _WORD.finditer(line):
        path = image_path(word[0])
        if path is not None:
            pieces += [line[end : word.start()].strip(), path]
            end = word.end()
    pieces = [piece for piece in (*pieces, line[end:].strip()) if piece != ""]
    trailing: list[str | Path] = []
    while pieces and isinstance(pieces[-1], Path):
        trailing.insert(0, pieces.pop())
    first_text = next((n for n, piece in enumerate(pieces) if isinstance(piece, str)), len(pieces))
    return Line((*pieces[:first_text], *trailing, *pieces[first_text:]))


def image_path(word: str) -> Path | None:
    """The path that a word of a line names, if it is that of an image."""
    plain = "".join(shlex.split(word))
    if plain.startswith("file://"):
        return Path(unquote(re.sub("^file://[^/]*", "", plain)))
    return at_home(plain) if plain.lower().endswith(SUFFIXES) else None


def at_home(name: str) -> Path:
    """A path as it is typed, with ~ for a person's own folder; that of nobody stays as it is, and does not exist."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):  # or no name of a person at all, such as one with a null byte
        return Path(name)


def read_file(path: Path) -> bytes:
    """Content of a file that a person named.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.is_dir():
            raise InputError(f"{path} is a folder: name an image")
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        return path.read_bytes()
    except OSError as error:  # a folder above it that may not be entered, a name that is too long
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
