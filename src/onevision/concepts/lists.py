"""Concept names from text files: words, bigrams, titles with their numbers, and a person's own lists.

Files are UTF-8, with a byte order mark or without, one name a line, its numbers after tabs; empty lines do not count.
A line that cannot be used is counted by its reason:

    not_utf8           its bytes are no UTF-8
    control_character  it holds one, besides the tabs between fields
    too_long           the name has more than 200 bytes
    no_name            there is a number only
    no_count           the number is missing, is none, or is 2**53 or more
    not_two_words      a bigram without a PMI, of which the words are not clear
    no_word_count      a bigram without a PMI, of whose words one is in no list of words
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from onevision.errors import DataError, InputError

MAX_NAME_BYTES = 200


class Ledger:
    """The lines of a file: how many were read, and how many rejected, by reason."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.reasons: Counter[str] = Counter()
        self._first = ""

    def reject(self, reason: str, number: int) -> None:
        """Count line `number` (from 1) under a reason."""
        self._first = self._first or f"line {number} is {reason}"
        self.reasons[reason] += 1

    def check(self, threshold: float) -> None:
        """Refuse a file of which too large a share was rejected.

        Raises:
            DataError: names the file, the reasons and the first rejected line.
        """
        rejected = self.reasons.total()
        if rejected > threshold * self.lines:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.reasons.items()))
            raise DataError(
                f"{self.path}: {rejected} of {self.lines} lines ({rejected / self.lines:.1%}) cannot be used, more "
                f"than data.reject_threshold={threshold} allows ({reasons}; {self._first})"
            )


def normalised(name: str) -> str:
    """A name as it is written in a vocabulary: NFC, no blanks around it, one blank for each run of them inside."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def read_names(path: Path, ledger: Ledger) -> Iterator[tuple[int, str, list[str]]]:
    """Number, normalised name and further fields of each line that has a name.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                ledger.lines += 1
                try:
                    first, *fields = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
                except UnicodeDecodeError:
                    ledger.reject("not_utf8", number)
                    continue
                reason, name = _fault(first), normalised(first)
                if reason:
                    ledger.reject(reason, number)
                else:
                    yield number, name, fields
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def read_counted(path: Path, ledger: Ledger) -> Iterator[tuple[str, float]]:
    """Names with the number beside them, of a list of words or of titles.

    Raises:
        InputError: the file cannot be read.
    """
    for number, name, fields in read_names(path, ledger):
        count = _number(fields[0]) if fields else None
        if count is None or count < 0:
            ledger.reject("no_count", number)
        else:
            yield name, count


def read_bigrams(path: Path, ledger: Ledger) -> Iterator[tuple[int, str, float, float | None]]:
    """Line number, name, count, and PMI (None where the file gives none) of a list of bigrams.

    Raises:
        InputError: the file cannot be read.
    """
    for number, name, fields in read_names(path, ledger):
        count = _number(fields[0]) if fields else None
        given = _number(fields[1]) if len(fields) > 1 else None
        if count is None or count < 0 or (len(fields) > 1 and given is None):
            ledger.reject("no_count", number)
        else:
            yield number, name, count, given


def pmi(pair: float, first: float, second: float, total: float) -> float:
    """Pointwise mutual information log2(pair * total / (first * second)) of two words that are neighbours.

    `pair` counts the two side by side, `first` and `second` each of them, `total` all words. It is how many bits more
    likely the pair is than by chance, and at most log2(total). MetaCLIP's threshold of 30 is on this scale: in the
    billions of words of Wikipedia it keeps pairs of words that occur a few times and hardly ever apart.
    """
    return math.log2(pair) + math.log2(total) - math.log2(first) - math.log2(second)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 2**53 else None  # beyond that a double does not count; NaN is not less


def _fault(name: str) -> str:
    """Why a name cannot be used; empty where it can."""
    plain = normalised(name)
    if not plain:
        return "no_name"
    if any(unicodedata.category(letter) == "Cc" for letter in plain):
        return "control_character"
    return "too_long" if len(plain.encode()) > MAX_NAME_BYTES else ""
