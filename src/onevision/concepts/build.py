"""The concepts step: the samples of a corpus are joined with the concepts of a vocabulary, into `concepts.h5`.

Each part of the corpus becomes one part of the index; ranks share them, an interrupted step goes on with those that are
missing, and the index is the same for any number of ranks. Images are streamed: memory holds the vocabulary, two
readings of samples, and the columns of one part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onevision.concepts.encoders import load_encoder
from onevision.concepts.encoders.weights import need_packages
from onevision.concepts.index import (
    FORMAT_VERSION,
    MAX_MATCHES,
    ConceptIndex,
    ConceptPart,
    write_concept_part,
    write_master,
)
from onevision.concepts.matching import Matcher, NamedConcepts, NearestConcepts
from onevision.concepts.samples import SampleReader
from onevision.concepts.search import ConceptSearch, open_search
from onevision.concepts.substring import NameFinder
from onevision.concepts.summary import part_facts, summarise
from onevision.concepts.vocabulary import Vocabulary
from onevision.corpus.reader import CorpusReader
from onevision.errors import DataError, InputError
from onevision.fingerprint import value_digest
from onevision.progress import Progress
from onevision.ranks import ALONE, Ranks
from onevision.recipe import Recipe
from onevision.steps import StepResult, forget_damaged, forget_part, run_parts

READ_BATCHES = 4  # batches of the encoder that are read at once, so that it has the next one at hand


def build_concepts(
    recipe: Recipe, output: str | Path, ranks: Ranks = ALONE, report: Callable[[str], None] = print
) -> StepResult:
    """Find the concepts of all samples of `data.corpus` in `concepts.vocabulary`; nothing is done when the folder
    `output` already holds the same.

    With concepts.match=embedding these are the `top_k` nearest to what the encoder makes of a sample, without those
    below `min_score`; one that it has nothing of (no caption, no image) has none. With match=substring they are those
    that the caption names, and nothing is encoded. A sample whose bytes are not those that were written, or of which an
    image is decoded and cannot be, keeps its row, without concepts. `report` gets one line about the result, on rank 0.

    Raises:
        InputError: the corpus or the vocabulary is missing, the vocabulary was embedded by another encoder or has fewer
            than `top_k` concepts, or packages are not installed.
        DataError: more samples than `data.reject_threshold` allows are damaged, or there are none.
        StorageError: the disk is full.
    """
    output = Path(output)
    step = _Concepts(recipe, ranks)
    if ranks.rank == 0:
        forget_damaged(output, partial(ConceptIndex.open, output), "the concepts are looked for again", report)
    result = run_parts("concepts", output, step.inputs, step.parts, step.build, step.finish, ranks)
    summary = result.summary
    step.check_damage(summary["damaged"], summary["damage"])
    if ranks.rank == 0:
        report(_line(output, summary) + (" (unchanged)" if result.skipped else ""))
    return result


class _Concepts:
    """The parts of a concepts step."""

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        """All ranks call it."""
        self._data, self._concepts, self._ranks = recipe.data, recipe.concepts, ranks
        self._corpus = CorpusReader(recipe.data.corpus, recipe.data.shards)
        self._vocabulary = Vocabulary.open(self._concepts.vocabulary)
        self._encoder = load_encoder(self._concepts, ranks) if self._concepts.match == "embedding" else None
        sizes = [len(piece) for piece in self._corpus.index.id.pieces]
        self._start = np.cumsum([0, *sizes]).tolist()
        self.parts = len(sizes)
        self._check()
        self._attributes = self._index_attributes()
        self.inputs: dict[str, Any] = {
            **self._attributes,
            "parts": value_digest(sizes),
            "encoder_batch": self._concepts.encoder_batch if self._encoder else 0,  # sums are rounded by batches
            "format_version": FORMAT_VERSION,
        }
        self._progress: Progress | None = None

    def _check(self) -> None:
        concepts, vocabulary, encoder = self._concepts, self._vocabulary, self._encoder
        if not self._start[-1]:
            raise DataError(f"{self._corpus.index.path} holds no samples")
        if encoder is None:
            need_packages("concepts.match=substring", "ahocorasick_rs")
            return
        if vocabulary.encoder != encoder.fingerprint:
            raise InputError(
                f"{vocabulary.path} was made with encoder={vocabulary.encoder or 'none'}, concepts.encoder="
                f"{concepts.encoder} is {encoder.fingerprint}: run `make vocabulary` again"
            )
        most = min(len(vocabulary), MAX_MATCHES)
        if concepts.top_k > most:
            raise InputError(
                f"concepts.top_k={concepts.top_k}: {vocabulary.path} has {len(vocabulary)} concepts; choose 1 to {most}"
            )

    def _index_attributes(self) -> dict[str, str | int | float]:
        concepts, encoder = self._concepts, self._encoder
        return {
            "concepts": len(self._vocabulary),
            "dimension": self._vocabulary.dimension if encoder else 0,
            "top_k": concepts.top_k if encoder else 0,
            "min_score": concepts.min_score if encoder else -1.0,
            "match": concepts.match,
            "search": concepts.search if encoder else "",
            "image_hashes": int(concepts.image_hashes),
            "corpus": self._corpus.index.fingerprint,
            "vocabulary": self._vocabulary.fingerprint,
            "encoder": encoder.fingerprint if encoder else "",
        }

    @cached_property
    def _search(self) -> ConceptSearch:
        return open_search(self._vocabulary.embedding, self._concepts)

    @cached_property
    def _finder(self) -> NameFinder:
        return NameFinder(self._vocabulary.names)

    def _matcher(self) -> Matcher:
        if self._encoder is None:
            return NamedConcepts(self._finder)
        return NearestConcepts(self._encoder, self._search, self._concepts.top_k, self._concepts.min_score)

    def build(self, folder: Path, k: int) -> dict[str, Any]:
        """Write part k; returns what the summary needs to know of it."""
        self._count(folder)
        samples = SampleReader(
            self._corpus,
            self._concepts.encoder_batch * READ_BATCHES,
            hashes=self._concepts.image_hashes,
            keep_images=self._encoder is not None and self._encoder.kind == "clip",
            threads=self._data.workers,
        )
        matcher = self._matcher()
        hashes: list[int] = []
        hash_count: list[int] = []
        damage: list[str] = []
        for batch in samples.batches(range(self._start[k], self._start[k + 1])):
            matcher.add(batch)
            for sample in batch:
                hashes += sample.hashes
                hash_count.append(len(sample.hashes))
                if sample.damage:
                    damage.append(f"{self._corpus.id(sample.row)}: {sample.damage}")
            self._advance(len(batch))
        self.check_damage(len(damage), damage)
        found = matcher.found()
        part = ConceptPart(
            found.matches,
            found.concept,
            found.score,
            np.array(hash_count, np.uint16),
            np.array(hashes, np.uint64),
            found.embedding,
        )
        write_concept_part(folder, k, part)
        return part_facts(part, damage, found)

    def finish(self, folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        """Write what joins the parts; returns the summary."""
        summary = summarise(known)
        try:
            self.check_damage(summary["damaged"], summary["damage"])
        except DataError:
            for k, facts in enumerate(known):
                if facts["damaged"]:  # when the shards have been mended these are read again, and no others
                    forget_part(folder, k)
            raise
        write_master(folder, self.parts, self._attributes)
        index = ConceptIndex.open(folder)
        self._count(folder)
        return {
            **summary,
            "concepts": index.concepts,
            "concepts_found": int(np.count_nonzero(index.count)),
            "fingerprint": index.fingerprint,
        }

    def check_damage(self, damaged: int, damage: list[str]) -> None:
        """Refuse more damaged samples than the threshold allows.

        Raises:
            DataError: naming the first.
        """
        rows, threshold = self._start[-1], self._data.reject_threshold
        if damaged > threshold * rows:
            raise DataError(
                f"{self._corpus.index.path}: at least {damaged} of {rows} samples are damaged ({damaged / rows:.1%}, "
                f"data.reject_threshold={threshold}), the first is {damage[0]}: copy the shards again, or run "
                "`make corpus` again"
            )

    def _count(self, folder: Path) -> None:
        """Show how far all ranks together are."""
        if self._ranks.rank:
            return
        sizes = np.diff(self._start)
        done = int(sum(sizes[int(path.stem.removeprefix("part-"))] for path in folder.glob("part-*.json")))
        if self._progress is None:
            self._progress = Progress("concepts", self._start[-1], start=done)
        self._progress.done = done
        if done == self._start[-1]:
            self._progress.show("")

    def _advance(self, samples: int) -> None:
        """Count the samples of this rank, and take its pace for that of the others until their parts are counted."""
        if self._progress is not None:
            left = self._start[-1] - self._progress.done
            self._progress.advance(min(left, samples * self._ranks.size))


def _line(output: Path, summary: dict[str, Any]) -> str:
    damage = f" ({summary['damage'][0]})" if summary["damage"] else ""
    return (
        f"concepts {output}: {summary['samples']:,} samples with {summary['matches']:,} matches of "
        f"{summary['concepts_found']:,} of {summary['concepts']:,} concepts, {summary['without']:,} without any, "
        f"{summary['damaged']:,} damaged{damage}{_search_note(summary['search'])}"
    )


def _search_note(search: dict[str, Any] | None) -> str:
    if search is None:
        return ""
    note = f"; search by {search['first_pass']}, exact scores for {search['scored_fraction']:.2%} of the pairs"
    return note + (f", recall {search['recall']:.4f}" if search["recall"] is not None else "")
