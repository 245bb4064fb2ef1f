"""Text files of JSON values, one a line or all in one array, read from any byte on.

A byte order mark, which some programs on Windows put before a text, is no part of it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from onevision.corpus.formats.unit import Unit
from onevision.corpus.record import Reject
from onevision.errors import InputError

BLOCK = 1 << 20  # bytes read at once
LONGEST = 64 << 20  # characters of a value of an array; beyond that it is taken for broken
_BETWEEN = " \t\r\n,"
_ODD_BYTES = "surrogateescape"  # bytes that are no UTF-8 spoil the record in which they are, not its neighbours


@dataclass(frozen=True)
class Row:
    """The `number`-th row of a file (from 1) from byte `begin` to `end`: its JSON value, or why there is none."""

    number: int
    begin: int
    end: int
    value: Any


def open_text(path: Path) -> BinaryIO:
    """Open a file.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path, first: int = 1, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """The values of the lines between two bytes, the first being line number `first`; blank lines are passed over.

    Raises:
        InputError: the file cannot be opened.
    """
    with open_text(path) as file:
        file.seek(begin)
        for number, line in enumerate(file, start=first):
            if end is not None and begin >= end:
                return
            if line.strip():
                yield Row(number, begin, begin + len(line), _value(line))
            begin += len(line)


def read_array(path: Path, first: int = 1, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """The values of a JSON array between two bytes, which both lie between values (or are those of the whole file).

    What comes after a broken value cannot be told apart: it is one row that says so.

    Raises:
        InputError: the file cannot be opened.
    """
    decoder = json.JSONDecoder()
    with open_text(path) as file:
        file.seek(begin)
        text, place, number = _Text(file), begin, first
        if not begin:
            place += len(codecs.BOM_UTF8) * text.skip("\ufeff", most=1)
            place += text.skip(_BETWEEN)
            place += text.skip("[", most=1)
        while True:
            place += text.skip(_BETWEEN)
            if end is not None and place >= end:
                return
            if text.rest(1) == "]":
                text.skip("]", most=1)
                text.skip(_BETWEEN)
                if text.rest(1):
                    why = f"the array ends at byte {place}; what comes after it is lost"
                    yield Row(number, place, max(place + 1, path.stat().st_size), Reject("array_unreadable", why))
                return
            try:
                value, size = text.decode(decoder)
            except (ValueError, RecursionError) as error:
                why = f"{error}; what comes after byte {place} is lost" if text.rest(1) else "the array has no end"
                size = max(1, path.stat().st_size - place)
                yield Row(number, place, place + size, Reject("array_unreadable", why))
                return
            yield Row(number, place, place + size, value)
            place += size
            number += 1


def read_rows(path: Path, first: int = 1, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """As `read_array` or `read_lines`, whichever the file is for.

    Raises:
        InputError: the file cannot be opened.
    """
    return (read_array if is_array(path) else read_lines)(path, first, begin, end)


def is_array(path: Path) -> bool:
    """Whether a JSON file holds one array, not a value a line. Where its name says that it has lines, one that is an
    array or is broken costs itself: only what begins as no line does is an array, whatever its name.

    Raises:
        InputError: the file cannot be opened.
    """
    with open_text(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        if path.suffix != ".jsonl":
            return file.read(4096).lstrip()[:1] == b"["
        lines = iter(partial(file.readline, LONGEST), b"")
        first = next((line for line in lines if line.strip()), b"")
        text = first.strip()
        goes_on = text == b"[" or text.endswith(b",")
        return text[:1] == b"[" and (goes_on or not first.endswith(b"\n") or not any(map(bytes.strip, lines)))


def cut(file: str, rows: Iterator[Row], rows_a_unit: int, seen: Callable[[Row], None]) -> list[Unit]:
    """The units of the text file `file`; `seen` is shown every row."""
    units: list[Unit] = []
    first: Row | None = None
    last: Row | None = None
    count = 0
    for row in rows:
        seen(row)
        if first is None or last is None or count == rows_a_unit:
            units += [Unit(file, first.number, last.number, first.begin, last.end)] if first and last else []
            first, count = row, 0
        last = row
        count += 1
    return units + ([Unit(file, first.number, last.number, first.begin, last.end)] if first and last else [])


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Reject("not_utf8", f"byte {error.start}: {error.reason}")
    except (ValueError, RecursionError) as error:
        return Reject("bad_json", str(error))


class _Text:
    """What is not yet read of a file, as text that is fetched when it is needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")(_ODD_BYTES)
        self._text = ""
        self._at = 0
        self._ended = False

    def rest(self, characters: int) -> str:
        """The next characters, without taking them; fewer at the end of the file."""
        while len(self._text) - self._at < characters and not self._ended:
            self._fetch()
        return self._text[self._at : self._at + characters]

    def skip(self, characters: str, most: int = -1) -> int:
        """Take those of these (ASCII) characters that come next; returns how many."""
        taken = 0
        while taken != most and (character := self.rest(1)) and character in characters:
            self._at += 1
            taken += 1
        return taken

    def decode(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """Take the next value; returns it and its bytes.

        Raises:
            ValueError: what comes next is not the whole of a value.
        """
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    size = len(self._text[self._at : end].encode(errors=_ODD_BYTES))
                    self._at = end
                    return value, size
            except json.JSONDecodeError:
                if self._ended or len(self._text) - self._at > LONGEST:
                    raise
            self._fetch()

    def _fetch(self) -> None:
        block = self._file.read(BLOCK)
        self._ended = not block
        self._text = self._text[self._at :] + self._decoder.decode(block, final=not block)
        self._at = 0
