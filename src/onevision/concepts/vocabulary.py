"""`vocabulary.h5`: the concepts that samples are joined with, and their embeddings.

    /name        S<n> [C] (UTF-8), also in concepts.txt, one a line
    /provenance  u1 [C]  sum of 1 (wordnet), 2 (words), 4 (bigrams), 8 (titles), 16 (lists): all sources that name it
    /frequency   i8 [C]  the largest count or number of views that a source gives it, 0 where none does
    /embedding   f2 [C, D]  of unit length; D is 0, and encoder is "", where names are only looked for in captions
    attributes   format_version, concepts, dimension, encoder (fingerprint), templates (JSON), fingerprint (of all)

Concepts come in the order of the sources, and of each source (onevision.concepts.names). The embedding is contiguous
and is mapped into memory, so that processes share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.concepts.counts import count_corpus
from onevision.concepts.encoders import Encoder, load_encoder
from onevision.concepts.encoders.weights import unit
from onevision.concepts.names import Names, collect_names, uses_corpus
from onevision.corpus.hdf5 import create, mapped, opened, own
from onevision.errors import DataError, InputError
from onevision.files import replacing, write_text
from onevision.fingerprint import bytes_digest, value_digest
from onevision.progress import Progress
from onevision.ranks import ALONE, Ranks
from onevision.recipe import Recipe
from onevision.steps import StepResult, forget_damaged, run_parts

FORMAT_VERSION = 1
FILE = "vocabulary.h5"
LIST = "concepts.txt"
PART_NAMES = 4096  # names that are embedded together; ranks share the parts
AGAIN = "run `make vocabulary` again"


@dataclass(frozen=True)
class Vocabulary:
    """An opened `vocabulary.h5` of C concepts with embeddings of D values."""

    path: Path
    names: tuple[str, ...]  # [C]
    provenance: NDArray[np.uint8]  # [C], bits in the order of names.SOURCES
    frequency: NDArray[np.int64]  # [C]
    embedding: NDArray[np.float16]  # [C, D], mapped
    dimension: int
    encoder: str  # fingerprint
    templates: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def open(cls, folder: str | Path) -> Vocabulary:
        """Open the vocabulary of a folder and check that its columns fit each other.

        Raises:
            InputError: there is no vocabulary.h5, or it has another format.
            DataError: it is damaged.
        """
        path = Path(folder) / FILE
        absent = "run `make vocabulary`, or set concepts.vocabulary to its folder"
        with opened(path, FORMAT_VERSION, absent, AGAIN) as file:
            vocabulary = cls(
                path=path,
                names=tuple(name.decode() for name in own(file, "name", "S")[()].tolist()),
                provenance=own(file, "provenance", "u1")[()],
                frequency=own(file, "frequency", "<i8")[()],
                embedding=mapped(path, own(file, "embedding", "<f2", 2)),
                dimension=int(file.attrs["dimension"]),
                encoder=str(file.attrs["encoder"]),
                templates=tuple(map(str, json.loads(file.attrs["templates"]))),
                fingerprint=str(file.attrs["fingerprint"]),
            )
            concepts = int(file.attrs["concepts"])
        columns = (vocabulary.names, vocabulary.provenance, vocabulary.frequency)
        shape = (concepts, vocabulary.dimension)
        if {len(column) for column in columns} != {concepts} or vocabulary.embedding.shape != shape:
            raise DataError(f"{path} is damaged (its columns do not fit each other): {AGAIN}")
        return vocabulary


def write_vocabulary(
    folder: Path,
    names: Sequence[str],
    provenance: NDArray[np.uint8],
    frequency: NDArray[np.int64],
    embeddings: Iterable[NDArray[np.float16]],
    dimension: int,
    encoder: str,
    templates: Sequence[str],
) -> str:
    """Write concepts.txt and then vocabulary.h5 into a folder; `embeddings` are pieces [n, D], taken one at a time.

    Returns:
        The fingerprint.

    Raises:
        OSError: as any write.
    """
    columns: dict[str, NDArray[Any]] = {
        "name": np.array([name.encode() for name in names], "S"),
        "provenance": np.ascontiguousarray(provenance, "u1"),
        "frequency": np.ascontiguousarray(frequency, "<i8"),
    }
    attributes = {
        "concepts": len(names),
        "dimension": dimension,
        "encoder": encoder,
        "templates": json.dumps(list(templates), ensure_ascii=False),
    }
    digests = {name: bytes_digest(values.tobytes()) for name, values in columns.items()}
    write_text(folder / LIST, "".join(f"{name}\n" for name in names))
    temporary, state, start = folder / f".{FILE}.tmp", xxhash.xxh3_128(), 0
    with create(temporary) as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)
        embedding = file.create_dataset("embedding", (len(names), dimension), "<f2")
        for piece in embeddings:
            embedding[start : start + len(piece)] = piece
            state.update(piece.astype("<f2", copy=False).tobytes())
            start += len(piece)
        fingerprint = value_digest([FORMAT_VERSION, attributes, digests, state.hexdigest()])
        file.attrs.update(attributes, format_version=FORMAT_VERSION, fingerprint=fingerprint)
    temporary.replace(folder / FILE)
    return fingerprint


def build_vocabulary(
    recipe: Recipe, output: str | Path, ranks: Ranks = ALONE, report: Callable[[str], None] = print
) -> StepResult:
    """Collect the names of all sources of `recipe.concepts` into the folder `output` and embed them.

    A concept's embedding is the mean of the embeddings of `concepts.templates` with its name in place of `{}`, brought
    to unit length. Names are embedded in parts, which `ranks` share; the vocabulary does not depend on how many there
    are, and a step that was killed goes on with the parts that are missing. Where words or bigrams are those of the
    corpus, they are counted in a step of its own, whose folder has the same name with ".counts". `report` gets one line
    about the result, on rank 0. With concepts.match=substring nothing is embedded, and no encoder is needed.

    Raises:
        InputError: no source is named or one is missing, a template has no `{}`, or there is no encoder.
        DataError: too many lines of a source cannot be used, or it is malformed.
        StorageError: the disk is full.
    """
    concepts, output = recipe.concepts, Path(output)
    check_templates(concepts.templates)
    encoder = load_encoder(concepts, ranks) if concepts.match == "embedding" else None
    counts = None
    if uses_corpus(concepts):
        folder = output.with_name(f"{output.name}.counts")
        counts = count_corpus(recipe.data, concepts.min_word_count, folder, ranks, report)
    threshold = recipe.data.reject_threshold
    names = ranks.first(collect_names(concepts, threshold, counts) if ranks.rank == 0 else None)
    inputs = {
        "names": names.digest,
        "encoder": encoder.fingerprint if encoder else "",
        "encoder_batch": concepts.encoder_batch if encoder else 0,
        "templates": list(concepts.templates) if encoder else [],
        "part_names": PART_NAMES,
        "format_version": FORMAT_VERSION,
    }
    if ranks.rank == 0:
        forget_damaged(output, partial(Vocabulary.open, output), "the vocabulary is made again", report)
    embedding = _Embedding(names, encoder, concepts.templates if encoder else [], show=ranks.rank == 0)
    result = run_parts("vocabulary", output, inputs, embedding.parts, embedding.embed, embedding.finish, ranks)
    if ranks.rank == 0:
        summary = result.summary
        added = ", ".join(f"{found['added']:,} of {source}" for source, found in summary["sources"].items())
        rejected = sum(sum(reasons.values()) for reasons in summary["rejects"].values())
        report(
            f"vocabulary {output}: {summary['concepts']:,} concepts ({added}), {summary['dimension']} values each, "
            f"{rejected:,} lines rejected" + (" (unchanged)" if result.skipped else "")
        )
    return result


def check_templates(templates: Sequence[str]) -> None:
    """Refuse templates that have no place for a name.

    Raises:
        InputError: there is none, or one without `{}`.
    """
    if not templates:
        raise InputError("concepts.templates is empty: set at least one, such as ['{}']")
    for template in templates:
        if "{}" not in template:
            raise InputError(f"concepts.templates: {template!r} has no {{}} where the concept's name would stand")


class _Embedding:
    """The parts of the step: `PART_NAMES` names each; without an encoder there are none."""

    def __init__(self, names: Names, encoder: Encoder | None, templates: Sequence[str], show: bool) -> None:
        self.names, self.encoder, self.templates = names, encoder, tuple(templates)
        self.parts = -(-len(names.names) // PART_NAMES) if encoder else 0
        self._show = show
        self._progress: Progress | None = None

    def embed(self, folder: Path, part: int) -> dict[str, Any]:
        """Embed the names of a part."""
        assert self.encoder is not None  # there are no parts without one
        self._count(folder)
        names = self.names.names[part * PART_NAMES : (part + 1) * PART_NAMES]
        sums = np.zeros((len(names), self.encoder.dimension), np.float32)
        for template in self.templates:
            sums += self.encoder.texts([template.replace("{}", name) for name in names])
        with replacing(_part_file(folder, part)) as temporary, temporary.open("wb") as file:
            np.save(file, unit(sums).astype("<f2"))
        return {"dimension": sums.shape[1]}

    def finish(self, folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the vocabulary of all parts; returns the summary."""
        self._count(folder)
        files = [_part_file(folder, part) for part in range(self.parts)]
        dimension = known[0]["dimension"] if known else 0
        if not (folder / FILE).exists():  # else an earlier start ended right after it was written
            write_vocabulary(
                folder,
                self.names.names,
                self.names.provenance,
                self.names.frequency,
                map(np.load, files),
                dimension,
                self.encoder.fingerprint if self.encoder else "",
                self.templates,
            )
        for file in files:
            file.unlink(missing_ok=True)
        return {
            "concepts": len(self.names.names),
            "dimension": dimension,
            "sources": self.names.sources,
            "rejects": self.names.rejects,
            "fingerprint": Vocabulary.open(folder).fingerprint,
        }

    def _count(self, folder: Path) -> None:
        """Show how far all ranks together are."""
        if not self._show:
            return
        total, done = len(self.names.names), len(list(folder.glob("part-*.json")))
        if self._progress is None:
            self._progress = Progress("vocabulary", total, "names", start=min(total, done * PART_NAMES))
        if done < self.parts:
            self._progress.advance(done * PART_NAMES - self._progress.done)
        else:
            self._progress.done = total
            self._progress.show("")


def _part_file(folder: Path, part: int) -> Path:
    return folder / f"embedding-{part:05d}.npy"
