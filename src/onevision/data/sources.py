"""What training reads: one corpus with its packs, or a mixture of several, seen as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onevision.corpus.reader import CorpusReader
from onevision.data.tokenizer import Tokenizer
from onevision.recipe_data import DataRecipe, MixtureEntry

if TYPE_CHECKING:  # packing stands above data
    from onevision.packing.index import PackIndex


@dataclass(frozen=True)
class Source:
    """A corpus and its packs. In `entry` are their folders and what part of a mixture they are."""

    entry: MixtureEntry
    corpus: CorpusReader
    packs: PackIndex

    @property
    def rate(self) -> Fraction:
        """In proportion to this its packs are read: its weight, or its packs times its epochs."""
        if self.entry.weight:
            return Fraction(str(self.entry.weight))  # 0.1 is a tenth
        return Fraction(str(self.entry.epochs or 1)) * self.packs.packs


@dataclass(frozen=True)
class Sources:
    """The sources of a run. The rows of their corpora are counted on from one source to the next: a sample id of source
    s is `first_row[s]` + its row in that corpus. Categories of one name are one category.
    """

    sources: tuple[Source, ...]

    @cached_property
    def first_row(self) -> NDArray[np.int64]:
        """Int64 [S + 1]; the last is the number of samples."""
        return np.cumsum([0, *(len(source.corpus) for source in self.sources)])

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories of all corpora, in the order in which they appear first."""
        return tuple(dict.fromkeys(name for source in self.sources for name in source.corpus.index.categories))

    @cached_property
    def category_numbers(self) -> list[NDArray[np.int64]]:
        """For each source, from the category's number in its corpus to that in `categories`."""
        number = {name: k for k, name in enumerate(self.categories)}
        names = [source.corpus.index.categories for source in self.sources]
        return [np.array([number[name] for name in own], np.int64) for own in names]

    def sample_name(self, sample_id: int) -> str:
        """The id that a sample has in its corpus; with several sources after the folder of that corpus."""
        number = int(np.searchsorted(self.first_row, sample_id, side="right")) - 1
        source = self.sources[number]
        name = source.corpus.id(sample_id - int(self.first_row[number]))
        return name if len(self.sources) == 1 else f"{source.entry.corpus}: {name}"

    def costs(self, source: NDArray[np.int64], pack: NDArray[np.int64], patch_cost: int) -> NDArray[np.int64]:
        """Attention cost and `patch_cost` times the patches of packs [B] of the sources [B], int64 [B]."""
        costs = np.empty(len(pack), np.int64)
        for number in np.unique(source).tolist():
            here, packs = source == number, self.sources[number].packs
            ids = pack[here]
            costs[here] = packs.attention_cost[ids] + patch_cost * packs.patches[ids].astype(np.int64)
        return costs

    def check(self, data: DataRecipe, tokenizer: Tokenizer) -> None:
        """Refuse packs that were not made for their corpus, this recipe and tokenizer.

        Raises:
            InputError, DataError: as `PackIndex.check_against`.
        """
        for source in self.sources:
            source.packs.check_against(source.corpus.index, data, tokenizer)


def entries_of(data: DataRecipe) -> list[MixtureEntry]:
    """The recipe's mixture, or its one corpus, or the selection of it, as a mixture of one."""
    return list(data.mixture) or [MixtureEntry(data.balanced or data.corpus, data.packs, data.shards)]


def by_source(name: str, values: Sequence[str]) -> Mapping[str, str]:
    """One value of each source by a name: the name itself for one source, else name.0, name.1, …"""
    if len(values) == 1:
        return {name: values[0]}
    return {f"{name}.{number}": value for number, value in enumerate(values)}
