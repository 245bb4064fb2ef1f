"""What there is to say about concepts and the selection that was drawn by them, read from the folders of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.index import COUNTS, BalanceIndex
from onevision.concepts.balance.index import FILE as BALANCE_FILE
from onevision.concepts.index import ConceptIndex
from onevision.concepts.vocabulary import FILE as VOCABULARY_FILE
from onevision.concepts.vocabulary import Vocabulary
from onevision.corpus.index import FILE as CORPUS_FILE
from onevision.corpus.reader import CorpusReader
from onevision.errors import DataError, InputError
from onevision.files import read_json
from onevision.recipe import Recipe
from onevision.report.concept_measures import Measures, measure
from onevision.report.concept_samples import ShownSample, choose_rows, show_samples


@dataclass(frozen=True)
class ConceptFacts:
    """What the folders hold; what is missing or does not belong to the concept index is None, and `notes` has a line
    that says so."""

    folder: Path  # where the page goes: that of the selection, or else that of the concepts
    index: ConceptIndex
    vocabulary: Vocabulary | None
    corpus: CorpusReader | None
    balance: BalanceIndex | None
    records: dict[str, dict[str, Any]]  # step.json of the steps "corpus", "vocabulary", "concepts", "balance"
    folders: dict[str, Path]  # theirs
    measures: Measures
    samples: list[ShownSample]  # none without a corpus
    notes: list[str]

    @property
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Samples with each concept, [C]: "before" (without duplicates, where they were looked for), and of a selection
        "after", and "random" in a random draw of as many samples."""
        if self.balance is None:
            return {"before": self.index.count}
        return {name.removeprefix("count_"): getattr(self.balance, name) for name in COUNTS}

    @property
    def drawn(self) -> dict[str, Any] | None:
        """What the balance step says of its selection."""
        return self.records["balance"]["summary"]["balance"] if self.balance else None

    def name(self, concept: int) -> str:
        """The name of a concept, or its number where the vocabulary is not known."""
        return self.vocabulary.names[concept] if self.vocabulary else f"concept {concept}"


def read_concept_facts(recipe: Recipe) -> ConceptFacts:
    """Read the concepts `concepts.index`, their vocabulary and corpus, and the selection `data.balanced`.

    Raises:
        InputError: there is no vocabulary and no concept index, or no concept index, or one has another format.
        DataError: one of them is damaged.
    """
    concepts, data = recipe.concepts, recipe.data
    folders = {
        "corpus": Path(data.corpus),
        "vocabulary": Path(concepts.vocabulary),
        "concepts": Path(concepts.index),
        "balance": Path(data.balanced),
    }
    notes: list[str] = []
    vocabulary = _vocabulary(folders["vocabulary"], (folders["concepts"] / "step.json").exists(), notes)
    index = ConceptIndex.open(concepts.index)
    if vocabulary and vocabulary.fingerprint != index.vocabulary:
        notes.append(_another("vocabulary", vocabulary, index.vocabulary, "`make concepts`"))
        vocabulary = None
    corpus = _corpus(folders["corpus"], data.shards, index, notes)
    balance = _balance(data.balanced, index, notes)
    known = {"corpus": corpus, "vocabulary": vocabulary, "concepts": index, "balance": balance}
    measures = measure(index, corpus.index if corpus else None, balance)
    rows = choose_rows(measures.parts, balance, concepts.seed)
    return ConceptFacts(
        folders["balance" if balance else "concepts"],
        index,
        vocabulary,
        corpus,
        balance,
        {name: read_json(folders[name] / "step.json") for name, there in known.items() if there is not None},
        folders,
        measures,
        show_samples(rows, index, corpus, balance) if corpus else [],
        notes,
    )


def _vocabulary(folder: Path, concepts_exist: bool, notes: list[str]) -> Vocabulary | None:
    """The vocabulary; None, with a note, where it is missing although concepts were found with it."""
    if concepts_exist and not (folder / VOCABULARY_FILE).exists():
        notes.append(f"vocabulary: missing, {folder} has no {VOCABULARY_FILE}; concepts have numbers instead of names")
        return None
    return Vocabulary.open(folder)


def _corpus(folder: Path, shards: str, index: ConceptIndex, notes: list[str]) -> CorpusReader | None:
    """The corpus, or None with a note."""
    left_out = "groups and samples are left out"
    if not (folder / CORPUS_FILE).exists():
        notes.append(f"corpus: missing, {folder} has no {CORPUS_FILE}; {left_out}")
        return None
    try:
        corpus = CorpusReader(folder, shards)
    except (DataError, InputError) as error:
        notes.append(f"corpus: {error}; {left_out}")
        return None
    sizes = [[len(piece) for piece in column.pieces] for column in (index.matches, corpus.index.shard)]
    if corpus.index.fingerprint != index.corpus or sizes[0] != sizes[1]:
        notes.append(f"{_another('corpus', corpus.index, index.corpus, '`make concepts`')}; {left_out}")
        return None
    return corpus


def _balance(folder: str, index: ConceptIndex, notes: list[str]) -> BalanceIndex | None:
    """The selection, or None with a note where it has nothing to do with the concept index."""
    if not folder:
        notes.append("selection: data.balanced names no folder; this is what the whole corpus has")
        return None
    if not (Path(folder) / BALANCE_FILE).exists():
        notes.append(f"selection: missing, {folder} has no {BALANCE_FILE}: run `make balance`")
        return None
    balance = BalanceIndex.open(folder)
    if balance.index == index.fingerprint:
        return balance
    note = (
        f"selection: {folder} was drawn by other concepts ({balance.index[:12]}) than {index.path.parent} holds now "
        f"({index.fingerprint[:12]}): run `make balance` again"
    )
    sizes = [[len(piece) for piece in column.pieces] for column in (index.matches, balance.fate)]
    same = (balance.corpus, balance.vocabulary) == (index.corpus, index.vocabulary) and sizes[0] == sizes[1]
    notes.append(note if same else f"{note}; it is left out, the corpus or the vocabulary is another one")
    return balance if same else None


def _another(name: str, opened: Any, expected: str, command: str) -> str:
    return (
        f"{name}: {opened.path.parent} holds another one ({opened.fingerprint[:12]}) than the concepts were made with "
        f"({expected[:12]}): run {command} again"
    )
