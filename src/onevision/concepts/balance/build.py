"""The balance step: a concept index into a seeded selection of its corpus, in which rare concepts are less rare.

The selection is a corpus folder of its own over the same shards: no image is copied. Beside its index lies `balance.h5`
(`onevision.concepts.balance.index`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance import duplicates
from onevision.concepts.balance.index import (
    COUNTS,
    DRAWN,
    FORMAT_VERSION,
    BalanceIndex,
    write_balance_master,
    write_balance_part,
)
from onevision.concepts.balance.quotas import Quotas, parse_quotas, shortfalls
from onevision.concepts.balance.selection import NONE, Candidates, Selection
from onevision.concepts.balance.summary import coverage
from onevision.concepts.index import ConceptIndex
from onevision.corpus.index import CorpusIndex
from onevision.corpus.join import join_parts
from onevision.corpus.part import part_column, part_name, select_rows
from onevision.errors import DataError, InputError
from onevision.fingerprint import value_digest
from onevision.lineage import write_lineage
from onevision.progress import Progress
from onevision.ranks import ALONE, Ranks
from onevision.recipe import ConceptRecipe, Recipe
from onevision.steps import StepResult, forget_damaged, run_parts


def build_balance(
    recipe: Recipe, output: str | Path, ranks: Ranks = ALONE, report: Callable[[str], None] = print
) -> StepResult:
    """Draw a balanced selection of `data.corpus` by its concept index `concepts.index` into the folder `output`;
    nothing is done when it already holds the same.

    Near duplicates are left out, concepts are counted, and samples are drawn without replacement in proportion to their
    weights (`onevision.concepts.balance.weights`), within quotas where there are any. What is drawn depends on the seed
    and on ids, never on `ranks` or on the order of the corpus (but for duplicates, of which the first stays). A step
    that was killed counts again, and writes only the parts that are missing. `report` gets one line, on rank 0.

    Raises:
        InputError: an index is missing, the concepts are those of another corpus, more samples are asked for than there
            are, a quota cannot be, or duplicates are looked for by what the concept index does not have.
        DataError: an index is damaged, or nothing is drawn.
        StorageError: the disk is full.
    """
    output = Path(output)
    concepts = recipe.concepts
    corpus = CorpusIndex.open(recipe.data.corpus, check_shards=not recipe.data.shards)
    index = ConceptIndex.open(concepts.index)
    _check(corpus, index, concepts)
    settings = _settings(concepts)
    quotas = parse_quotas(settings["quotas"], corpus.languages, corpus.sources)
    shard_folder = os.path.relpath(corpus.shard_path.resolve(), output.resolve())
    inputs = {
        "corpus": corpus.fingerprint,
        "concepts": index.fingerprint,
        "settings": settings,
        "shards": value_digest([shard_folder, corpus.shards, corpus.shard_bytes.tolist()]),
        "format_version": FORMAT_VERSION,
    }
    if ranks.rank == 0:

        def check() -> None:
            CorpusIndex.open(output, check_shards=not recipe.data.shards)
            BalanceIndex.open(output)

        forget_damaged(output, check, "the selection is drawn again", report)
    step = _Balancing(recipe, corpus, index, quotas, settings, shard_folder, inputs, ranks)
    parts = len(corpus.shards)
    result = run_parts("balance", output, inputs, parts, step.build, step.finish, ranks, step.prepare)
    if ranks.rank == 0:
        report(_line(output, result))
    return result


class _Balancing:
    """The parts of a balance step."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: CorpusIndex,
        index: ConceptIndex,
        quotas: Quotas,
        settings: dict[str, Any],
        shard_folder: str,
        inputs: dict[str, Any],
        ranks: Ranks,
    ) -> None:
        self._recipe, self._corpus, self._index, self._quotas = recipe, corpus, index, quotas
        self._settings, self._shard_folder, self._inputs, self._ranks = settings, shard_folder, inputs, ranks
        self._progress: Progress | None = None

    def prepare(self, work: Path) -> None:
        """Find the duplicates and make the draw, together with the other ranks."""
        concepts, index, ranks = self._recipe.concepts, self._index, self._ranks
        same_images = same_embedding = NONE
        if concepts.duplicate_bits >= 0:
            same_images = duplicates.find_by_images(index, concepts.duplicate_bits, work, ranks)
        if concepts.duplicate_similarity:
            found = duplicates.find_by_embedding(index, concepts.duplicate_similarity, same_images, work, ranks)
            same_embedding = found
        candidates = candidates_of(self._corpus, index, same_images, same_embedding)
        self._selection = Selection(candidates, concepts, self._quotas, ranks)

    def build(self, folder: Path, k: int) -> dict[str, Any]:
        """Write weight, fate and the drawn rows of part k; returns what the summary needs to know of it."""
        self._count(folder)
        weight, fate = self._selection.part(k)
        fingerprint = write_balance_part(folder, k, weight, fate)
        drawn = fate == DRAWN
        source = select_rows(self._corpus.path.parent / part_name(k), drawn, folder / part_name(k))
        return {
            "shard_bytes": int(self._corpus.shard_bytes[k]),
            "source": source,
            "fingerprint": fingerprint,
            "fates": np.bincount(fate, minlength=4).tolist(),
            "by_language": self._by_number(k, self._corpus.language, self._corpus.languages, drawn),
            "by_source": self._by_number(k, self._corpus.source, self._corpus.sources, drawn),
        }

    def finish(self, folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the parts; returns the summary: that of a corpus, and `balance`."""
        self._count(folder)
        corpus, selection = self._corpus, self._selection
        lengths: dict[str, str | int] = {
            name: getattr(corpus, name) for name in ("tokenizer", "template", "min_pixels", "max_pixels")
        }
        summary = join_parts(folder, known, lengths, self._shard_folder)
        counts = {name: getattr(selection, name) for name in COUNTS}
        attributes: dict[str, str | int] = {
            "samples": len(corpus),
            "drawn": selection.drawn,
            "corpus": corpus.fingerprint,
            "index": self._index.fingerprint,
            "vocabulary": self._index.vocabulary,
        }
        fingerprints = [row["fingerprint"] for row in known]
        fingerprint = write_balance_master(folder, fingerprints, counts, attributes, self._settings)
        fates = np.sum([row["fates"] for row in known], axis=0).tolist()
        folders = {"corpus": self._recipe.data.corpus, "concepts": self._recipe.concepts.index}
        write_lineage(folder, self._inputs, folders)
        duplicates.forget_pairs(folder)
        return summary | {
            "balance": {
                "before": len(corpus),
                "duplicates": {"embedding": fates[2], "image_hash": fates[3]},
                "drawn": selection.drawn,
                "concepts": self._index.concepts,
                "coverage": {name.removeprefix("count_"): coverage(counts[name], counts[COUNTS[0]]) for name in COUNTS},
                "language": _named(corpus.languages, [row["by_language"] for row in known]),
                "source": _named(corpus.sources, [row["by_source"] for row in known]),
                "shortfalls": shortfalls(self._quotas, selection.cells, selection.available),
                "settings": self._settings,
                "fingerprint": fingerprint,
            }
        }

    def _by_number(
        self, k: int, numbers: NDArray[np.int16], names: tuple[str, ...], drawn: NDArray[np.bool_]
    ) -> list[list[int]]:
        """Samples of part k with each number of a table, all and those that are drawn."""
        ours = numbers[self._selection.candidates.rows(k)]
        return [np.bincount(chosen, minlength=len(names)).tolist() for chosen in (ours, ours[drawn])]

    def _count(self, folder: Path) -> None:
        """Show how many parts all ranks together have written."""
        if self._ranks.rank:
            return
        done = len(list(folder.glob("part-*.json")))
        if self._progress is None:
            self._progress = Progress("balance", len(self._corpus.shards), "parts, written", start=done)
        self._progress.advance(done - self._progress.done)
        if done == self._progress.total:
            self._progress.show("")


def candidates_of(
    corpus: CorpusIndex, index: ConceptIndex, same_images: NDArray[np.int64], same_embedding: NDArray[np.int64]
) -> Candidates:
    """The samples of a corpus with their concepts; the rows `same_…` are left out."""
    start = np.cumsum([0, *(len(piece) for piece in index.matches.pieces)])
    folder = corpus.path.parent
    return Candidates(
        index,
        start,
        lambda k: part_column(folder / part_name(k), "id_hash"),
        corpus.language,
        corpus.source,
        corpus.languages,
        corpus.sources,
        same_images,
        same_embedding,
    )


def _check(corpus: CorpusIndex, index: ConceptIndex, concepts: ConceptRecipe) -> None:
    if index.corpus != corpus.fingerprint:
        raise InputError(
            f"{index.path} was made with corpus={index.corpus}, {corpus.path} has {corpus.fingerprint}: "
            "run `make concepts` again"
        )
    parts = [[len(piece) for piece in column.pieces] for column in (index.matches, corpus.shard)]
    if parts[0] != parts[1]:
        raise InputError(
            f"{index.path} has {len(parts[0])} parts, which are not the {len(parts[1])} of {corpus.path}: "
            "run `make concepts` again"
        )
    if not len(corpus):
        raise DataError(f"{corpus.path} holds no samples")
    if concepts.samples > len(corpus):
        raise InputError(f"concepts.samples={concepts.samples} are more than {corpus.path} has: {len(corpus)}")
    if concepts.quotas and not concepts.samples:
        raise InputError("concepts.quotas are shares of what is drawn: set concepts.samples to a number of samples")
    if concepts.duplicate_similarity and index.embedding is None:
        raise InputError(
            f"concepts.duplicate_similarity={concepts.duplicate_similarity}: {index.path} has no embeddings: set it to "
            "0, or run `make concepts` with concepts.match=embedding"
        )
    if concepts.duplicate_bits >= 0 and not index.image_hashes:
        raise InputError(
            f"concepts.duplicate_bits={concepts.duplicate_bits}: {index.path} has no image hashes: set it to -1, or "
            "run `make concepts` with concepts.image_hashes=true"
        )


def _settings(concepts: ConceptRecipe) -> dict[str, Any]:
    """The settings that decide what is drawn."""
    names = ["samples", "weighting", "seed", "quotas", "duplicate_similarity", "duplicate_bits"]
    names += ["threshold"] if concepts.weighting == "metaclip" else []
    settings = {name: getattr(concepts, name) for name in names}
    return settings | {"quotas": sorted(concepts.quotas)}


def _named(names: tuple[str, ...], counts: list[list[list[int]]]) -> dict[str, dict[str, int]]:
    """Samples before and after by the names of a table; `counts` are those of each part."""
    before, after = np.sum(counts, axis=0).tolist()
    return {name: {"before": b, "after": a} for name, b, a in zip(names, before, after, strict=True)}


def _line(output: Path, result: StepResult) -> str:
    found = result.summary["balance"]
    coverage = found["coverage"]
    out = found["duplicates"]
    short = ", ".join(
        f"{row['quota']} {row['drawn'] / found['drawn']:.1%} of {row['asked']:.1%}" for row in found["shortfalls"]
    )
    return (
        f"balance {output}: {found['drawn']:,} of {found['before']:,} samples, {out['image_hash']:,} the same by image "
        f"and {out['embedding']:,} by embedding; {coverage['after']['covered']:,} of {coverage['before']['covered']:,} "
        f"concepts, entropy {coverage['before']['entropy_bits']:.2f} -> {coverage['after']['entropy_bits']:.2f} bits, "
        f"under 100 samples {coverage['after']['rare']:,} (a random draw: {coverage['random']['rare']:,})"
        + (f"; quotas not reached: {short}" if short else "")
        + (" (unchanged)" if result.skipped else "")
    )
