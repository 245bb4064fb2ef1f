"""The names of a vocabulary: of all sources of the recipe, normalised, joined, each with its provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.counts import CorpusCounts, written
from onevision.concepts.lists import Ledger, normalised, pmi, read_bigrams, read_counted, read_names
from onevision.concepts.wordnet import wordnet_names
from onevision.errors import DataError, InputError
from onevision.fingerprint import value_digest
from onevision.recipe import ConceptRecipe

CORPUS = "corpus"  # instead of a file: count the captions of data.corpus
SOURCES = ("wordnet", "words", "bigrams", "titles", "lists")


@dataclass(frozen=True)
class Names:
    """C concepts in the order in which the sources name them first."""

    names: list[str]  # [C]
    provenance: NDArray[np.uint8]  # [C], bits in the order of `SOURCES`
    frequency: NDArray[np.int64]  # [C]
    sources: dict[str, dict[str, int]]  # of each source that is used: concepts named, and those not named before it
    rejects: dict[str, dict[str, int]]  # of each file: lines that cannot be used, by reason

    @property
    def digest(self) -> str:
        """Digest of all of it."""
        numbers = [self.provenance.tolist(), self.frequency.tolist()]
        return value_digest([self.names, *numbers, self.sources, self.rejects])


def collect_names(concepts: ConceptRecipe, reject_threshold: float, counts: CorpusCounts | None = None) -> Names:
    """Read all sources that `concepts` names; `counts` are those of data.corpus, where one of the sources is it.

    Two names are one concept when they differ only in case, blanks or the form of Unicode; the first spelling is kept.
    A name of several sources has the bits of all, and the largest frequency.

    Raises:
        InputError: no source is named, or one cannot be read.
        DataError: too many lines of a file cannot be used, a WordNet file is malformed, or no concept is left.
    """
    if not any(getattr(concepts, source) for source in SOURCES):
        settings = ", ".join(f"concepts.{source}" for source in SOURCES)
        raise InputError(f"a vocabulary has no source: set at least one of {settings}")
    reading = _Reading(concepts, reject_threshold, counts)
    names: list[str] = []
    known: dict[str, int] = {}
    provenance, frequency = bytearray(), []
    sources = {}
    for bit, source in enumerate(SOURCES):
        if not getattr(concepts, source):
            continue
        before, named = len(names), 0
        for name, count in getattr(reading, source)():
            key = name.casefold()
            number = known.setdefault(key, len(names))
            if number == len(names):
                names.append(name)
                provenance.append(0)
                frequency.append(0)
            named += not provenance[number] & 1 << bit
            provenance[number] |= 1 << bit
            frequency[number] = max(frequency[number], count)
        sources[source] = {"named": named, "added": len(names) - before}
    if not names:
        raise DataError(
            f"no concept is left of {', '.join(f'concepts.{source}' for source in sources)}: lower thresholds"
        )
    return Names(
        names, np.frombuffer(bytes(provenance), np.uint8), np.array(frequency, np.int64), sources, reading.rejects
    )


class _Reading:
    """The sources, each a method of its name that gives names with their frequencies (0 where it knows none)."""

    def __init__(self, concepts: ConceptRecipe, reject_threshold: float, counts: CorpusCounts | None) -> None:
        self.concepts, self.reject_threshold, self.counts = concepts, reject_threshold, counts
        self.rejects: dict[str, dict[str, int]] = {}

    def wordnet(self) -> Iterator[tuple[str, int]]:
        """The synsets."""
        concepts = self.concepts
        for name in wordnet_names(concepts.wordnet, concepts.wordnet_under, concepts.wordnet_words):
            yield normalised(name), 0

    def words(self) -> Iterator[tuple[str, int]]:
        """The words that are frequent enough."""
        counts, _ = self._word_counts
        for name, count in counts.items():
            if count >= self.concepts.min_word_count:
                yield name, int(count)

    def bigrams(self) -> Iterator[tuple[str, int]]:
        """The bigrams of which PMI says that they belong together."""
        if self.concepts.bigrams == CORPUS:
            yield from self._corpus_bigrams()
            return
        ledger = Ledger(Path(self.concepts.bigrams))
        for number, name, count, given in read_bigrams(ledger.path, ledger):
            value = self._pmi(ledger, number, name, count) if given is None else given
            if value is not None and value >= self.concepts.min_bigram_pmi:
                yield name, int(count)
        self._close(ledger)

    def titles(self) -> Iterator[tuple[str, int]]:
        """The titles that are read often enough; underscores in them are blanks."""
        ledger = Ledger(Path(self.concepts.titles))
        for name, views in read_counted(ledger.path, ledger):
            title = normalised(name.replace("_", " "))
            if title and views >= self.concepts.min_title_views:
                yield title, int(views)
        self._close(ledger)

    def lists(self) -> Iterator[tuple[str, int]]:
        """A person's own concepts."""
        for path in self.concepts.lists:
            ledger = Ledger(Path(path))
            for _, name, _ in read_names(ledger.path, ledger):
                yield name, 0
            self._close(ledger)

    @cached_property
    def _word_counts(self) -> tuple[dict[str, float], float]:
        """Counts of words, and of all of them together."""
        if self.concepts.words == CORPUS:
            assert self.counts is not None
            return dict(self.counts.words), self.counts.total
        ledger = Ledger(Path(self.concepts.words))
        counts: dict[str, float] = {}
        for name, count in read_counted(ledger.path, ledger):
            counts[name] = counts.get(name, 0) + count
        self._close(ledger)
        return counts, sum(counts.values())

    def _pmi(self, ledger: Ledger, number: int, name: str, count: float) -> float | None:
        """PMI of a bigram of a file that gives none; None of a line that is rejected."""
        if not self.concepts.words:
            raise InputError(
                f"{ledger.path}, line {number}: {name!r} has no PMI, and without counts of words there is none: set "
                "concepts.words too, or give the PMI as a third column"
            )
        counts, total = self._word_counts
        pair = name.split()
        if len(pair) != 2:
            ledger.reject("not_two_words", number)
            return None
        first, second = (counts.get(word, 0) for word in pair)
        if not first or not second or not count:
            ledger.reject("no_word_count", number)
            return None
        return pmi(count, first, second, total)

    def _corpus_bigrams(self) -> Iterator[tuple[str, int]]:
        assert self.counts is not None
        counts, least, wanted = self.counts, self.concepts.min_word_count, self.concepts.min_bigram_pmi
        highest = math.log2(max(counts.total, 1) / least)
        if wanted > highest:
            raise InputError(
                f"concepts.min_bigram_pmi={wanted:g} keeps no bigram of a corpus of {counts.total:,} words, where two "
                f"words that occur {least} times, always together, have a PMI of {highest:.1f}: set it lower (about "
                f"{highest / 2:.0f}), or lower concepts.min_word_count={least}"
            )
        for (first, second), count in counts.bigrams.items():
            if pmi(count, counts.words[first], counts.words[second], counts.total) >= wanted:
                yield written(first, second), count

    def _close(self, ledger: Ledger) -> None:
        ledger.check(self.reject_threshold)
        if ledger.reasons:
            self.rejects[str(ledger.path)] = dict(sorted(ledger.reasons.items()))


def uses_corpus(concepts: ConceptRecipe) -> bool:
    """Whether a source is the captions of data.corpus."""
    return CORPUS in (concepts.words, concepts.bigrams)
