"""Concept names from the data files of WordNet (data.noun, data.verb, data.adj, data.adv; the format is wndb(5WN)).

A synset gives one name, as MetaCLIP takes it: its first word, with blanks for underscores. The other words of a synset
mean the same, but a caption may use one of them ("donkey" stands in the synset of "domestic ass"), and an encoder that
judges by spelling then finds the wrong concept: a synset may also give all its words. Debian's package wordnet-base has
the files in /usr/share/wordnet.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onevision.errors import DataError, InputError

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
BELOW = ("~", "~i")  # pointers from a synset to its hyponyms, and to their instances
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand: attributive, predicative, after the noun


@dataclass(frozen=True)
class Synset:
    """One line of a data file."""

    number: str  # eight digits, unique in its file
    words: tuple[str, ...]  # as concepts are written
    below: tuple[str, ...]  # numbers of its hyponyms and instances
    gloss: str


def wordnet_names(folder: str | Path, under: Sequence[str] = (), words: str = "first") -> Iterator[str]:
    """The names of the synsets of a WordNet folder, in the order of `FILES` and of each file; names may repeat. `words`
    says which words of a synset are names: first, or all.

    With `under` only nouns are given: the synsets of these words, and all that lies below them. A word stands for the
    synset in which it is; where it is in several, the eight digits of one are to be given instead.

    Raises:
        InputError: a file is missing, or `under` names no synset, or several at once.
        DataError: a file is malformed: names the line.
    """
    folder = Path(folder)
    many = slice(1 if words == "first" else None)
    if not under:
        for name in FILES:
            for synset in read_synsets(folder / name):
                yield from synset.words[many]
        return
    nouns = {synset.number: synset for synset in read_synsets(folder / FILES[0])}
    wanted = _all_below(folder / FILES[0], nouns, [_named(folder / FILES[0], nouns, name) for name in under])
    for number, synset in nouns.items():
        if number in wanted:
            yield from synset.words[many]


def read_synsets(path: Path) -> Iterator[Synset]:
    """The synsets of a data file.

    Raises:
        InputError: the file is missing.
        DataError: it is malformed, or holds no synset: names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): set concepts.wordnet to a folder of WordNet"
        ) from None
    empty = True
    for number, line in enumerate(lines, 1):
        if line.startswith(b"  "):  # the licence
            continue
        try:
            yield _parse(line.decode())
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}, line {number}: no synset of WordNet ({error})") from None
        empty = False
    if empty:
        raise DataError(f"{path} holds no synset of WordNet")


def _parse(line: str) -> Synset:
    """A line: number, file, type, words, (word, sense)..., pointers, (symbol, number, type, ends)..., | gloss."""
    head, bar, gloss = line.partition(" | ")
    fields = head.split()
    if not bar or not re.fullmatch(r"\d{8}", fields[0]) or fields[2] not in ("n", "v", "a", "s", "r"):
        raise ValueError("it does not begin with eight digits, a file number and a type, or has no gloss")
    count = int(fields[3], 16)
    words = fields[4 : 4 + 2 * count : 2]
    pointers = int(fields[4 + 2 * count])
    first = 5 + 2 * count
    symbols, numbers = (fields[first + column : first + 4 * pointers : 4] for column in (0, 1))
    if count < 1 or len(fields) < first + 4 * pointers:
        raise ValueError(f"{count} words and {pointers} pointers are announced, {len(fields)} fields are there")
    below = tuple(number for symbol, number in zip(symbols, numbers, strict=True) if symbol in BELOW)
    return Synset(fields[0], tuple(_written(word) for word in words), below, gloss.strip())


def _written(word: str) -> str:
    return _MARKER.sub("", word).replace("_", " ")


def _named(path: Path, nouns: dict[str, Synset], name: str) -> str:
    """Number of the synset that `name` (a word, or a number) means."""
    if name in nouns:
        return name
    by_word = defaultdict(list)
    for synset in nouns.values():
        for word in synset.words:
            by_word[word.lower()].append(synset)
    found = by_word[_written(name).lower()]
    if not found:
        raise InputError(f"concepts.wordnet_under={name}: no synset of {path} has this word or number")
    if len(found) > 1:
        meanings = ", ".join(f'{synset.number} "{synset.gloss[:40]}"' for synset in found)
        raise InputError(f"concepts.wordnet_under={name}: {path} has it in {len(found)} synsets, name one: {meanings}")
    return found[0].number


def _all_below(path: Path, nouns: dict[str, Synset], roots: Sequence[str]) -> set[str]:
    """Numbers of the roots and of all that their pointers lead to."""
    found, ahead = set(roots), list(roots)
    while ahead:
        number = ahead.pop()
        for below in nouns[number].below:
            if below not in nouns:
                raise DataError(f"{path}: synset {number} has a pointer to {below}, which is not there")
            if below not in found:
                found.add(below)
                ahead.append(below)
    return found
