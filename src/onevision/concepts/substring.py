"""Concepts that a caption names, as MetaCLIP curates (arXiv 2309.16671): whole words, found all at once (Aho-Corasick).

A name is in a caption if it is a substring after the same has been done to both:

    - lower case, as `str.lower` gives it, and Unicode's form NFC;
    - a blank on either side of , . ; : ? ! ` and their full-width forms, so that they part words and are words;
    - a blank on either side of each character of a script that is written without blanks between words (Chinese,
      Japanese, Thai, Lao, Khmer, Burmese), so that a name is found anywhere in it;
    - runs of blanks, tabs and line ends are one blank; one is put at both ends.

So "sea lion" is in "Two sea lions." no more than "ion" is, and both "lion" and "sea lion" are in "a sea lion!". No form
of a word is turned into another: the plural counts only where the vocabulary has it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.lists import normalised

_MARKS = ",.;:?!`，。；：？！、"
# Thai and Lao, Burmese, Khmer, kana, Han and its extensions, compatibility and half-width forms.
_WITHOUT_BLANKS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_WORDS = re.compile(f"[{_MARKS}{_WITHOUT_BLANKS}]")


class NameFinder:
    """Finds the names of a vocabulary in captions; 500,000 names take 0.7 GB and 7 seconds to prepare."""

    def __init__(self, names: Sequence[str]) -> None:
        from ahocorasick_rs import AhoCorasick

        self._automaton = AhoCorasick([spaced(name) for name in names], store_patterns=False)

    def find(self, caption: str) -> NDArray[np.int32]:
        """The numbers of the names that are in a caption, each once, rising; int32 [n]."""
        found = {number for number, _, _ in self._automaton.find_matches_as_indexes(spaced(caption), overlapping=True)}
        return np.array(sorted(found), np.int32)


def spaced(text: str) -> str:
    """A text as it is compared: see above."""
    composed = unicodedata.normalize("NFC", text)  # a mark that follows its character is parted from it by blanks
    return f" {normalised(_WORDS.sub(_apart, composed.lower()))} "


def _apart(match: re.Match[str]) -> str:
    return f" {match[0]} "
