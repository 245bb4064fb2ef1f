"""`concepts.h5`: which concepts each sample of a corpus has, as numbers of a vocabulary; no data is copied.

N samples in the order of the corpus, C concepts of the vocabulary, embeddings of D values:

    /samples/  matches u2 [N]           concepts of a sample; 0 where nothing is known of it (damaged, no caption)
               image_hash_count u2 [N]  its hashes in /images: one an image, in their order; 0 without image hashes
               embedding f2 [N, D]      what was searched, of length 1, or zeros; only with match=embedding
    /concepts/ concept i4               into the vocabulary; those of a sample by falling score, then by rising number
               score f4                 inner product with the concept's embedding, or 1 for a name in the caption
    /images/   hash u8                  onevision.concepts.hashes; 0 tells nothing
    /count     i8 [C]                   samples that have a concept
    /parts/    the part files: onevision.corpus.hdf5
    attributes format_version, samples, concepts, dimension (0 without embeddings), top_k (0: any number of concepts),
               min_score, match, search, image_hashes (0 or 1): how it was made,
               corpus, vocabulary, encoder (fingerprints; encoder is "" where nothing was encoded),
               fingerprint: of all of this

/count lies in concepts.h5 itself, all other columns are virtual datasets over part files, `concepts-000000.h5` and so
on: one for each part of the corpus, with the same samples. Plain h5py reads them as one, as long as no part is missing
(HDF5 shows its rows as zeros); `ConceptIndex.open` looks at every part, then maps the columns into memory, so that
processes share them and forking is safe. A part file has the same columns and its fingerprint as an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.corpus import hdf5
from onevision.corpus.hdf5 import Column
from onevision.errors import DataError
from onevision.fingerprint import value_digest

FORMAT_VERSION = 1
FILE = "concepts.h5"
AGAIN = "run `make concepts` again"
MAX_MATCHES = np.iinfo(np.uint16).max  # of a sample
EMBEDDING = "samples/embedding"
COLUMNS = {
    "samples/matches": "<u2",
    "samples/image_hash_count": "<u2",
    "concepts/concept": "<i4",
    "concepts/score": "<f4",
    "images/hash": "<u8",
}
STRINGS = ("match", "search", "corpus", "vocabulary", "encoder", "fingerprint")
NUMBERS = ("samples", "concepts", "dimension", "top_k", "image_hashes")


@dataclass(frozen=True)
class ConceptPart:
    """The arrays of n samples that have m concepts and h image hashes in all."""

    matches: NDArray[np.uint16]  # [n]
    concept: NDArray[np.int32]  # [m]
    score: NDArray[np.float32]  # [m]
    image_hash_count: NDArray[np.uint16]  # [n]
    image_hash: NDArray[np.uint64]  # [h]
    embedding: NDArray[np.float16] | None  # [n, D]

    def __len__(self) -> int:
        return len(self.matches)

    def fits(self, vocabulary: int) -> bool:
        """Whether the columns have lengths that belong together, and the concepts are some of so many."""
        rows = {len(column) for column in (self.matches, self.image_hash_count, self.embedding) if column is not None}
        concepts, hashes = (int(count.sum(dtype=np.int64)) for count in (self.matches, self.image_hash_count))
        lengths = len(rows) == 1 and {len(self.concept), len(self.score)} == {concepts}
        known = self.concept.min(initial=0) >= 0 and self.concept.max(initial=-1) < vocabulary
        return bool(lengths and len(self.image_hash) == hashes and known)


@dataclass(frozen=True)
class ConceptIndex:
    """An opened `concepts.h5`; columns and attributes as in the file."""

    path: Path
    matches: Column  # uint16 [N]
    concept: Column  # int32 [all matches]
    score: Column  # float32 [all matches]
    image_hash_count: Column  # uint16 [N]
    image_hash: Column  # uint64 [all hashes]
    embedding: Column | None  # float16 [N, D]
    count: NDArray[np.int64]  # [C]
    samples: int
    concepts: int
    dimension: int
    top_k: int
    min_score: float
    image_hashes: int
    match: str
    search: str
    corpus: str
    vocabulary: str
    encoder: str
    fingerprint: str
    _sealed: set[int] = field(default_factory=set)  # parts that were compared with their seals

    def __len__(self) -> int:
        return self.samples

    @property
    def parts(self) -> int:
        """Part files: one for each part of the corpus."""
        return len(self.matches.pieces)

    def part(self, k: int, sealed: bool = True) -> ConceptPart:
        """The samples of part k, which are those of part k of the corpus; mapped, nothing is copied.

        With `sealed` all of the part is compared with its seal when it is first asked for. Embeddings are large: a
        step in which ranks share the parts needs this once a part, of one rank.

        Raises:
            DataError: the part is damaged, or its columns do not fit each other.
        """
        place = self.path.parent / part_file(k)
        if sealed and k not in self._sealed:
            hdf5.check_part(place)
            self._sealed.add(k)
        names = ("matches", "concept", "score", "image_hash_count", "image_hash")
        columns: dict[str, Any] = {name: getattr(self, name).pieces[k] for name in names}
        part = ConceptPart(**columns, embedding=self.embedding.pieces[k] if self.embedding is not None else None)
        if not part.fits(self.concepts):
            raise DataError(f"{place} is damaged (its columns do not fit each other): {AGAIN}")
        return part

    @classmethod
    def open(cls, folder: str | Path) -> ConceptIndex:
        """Open the index of a concepts folder; check that its parts are there and that its columns fit each other.

        Raises:
            InputError: there is no concepts.h5, or it has another format.
            DataError: concepts.h5 is damaged, or a part of it is missing or another one than it was.
        """
        path = Path(folder) / FILE
        absent = "run `make concepts`, or set concepts.index to its folder"
        with hdf5.opened(path, FORMAT_VERSION, absent, AGAIN) as file:
            count = hdf5.mapped(path, hdf5.own(file, "count", "<i8"))
            values: dict[str, Any] = {"count": count, "embedding": None}
            columns = {**COLUMNS, **({EMBEDDING: "<f2"} if file.attrs["dimension"] else {})}
            shown = hdf5.open_parts(path, file, columns, tables=[EMBEDDING], sealed=False)
            values |= {_field(name): column for name, column in shown.items()}
            values |= {name: str(file.attrs[name]) for name in STRINGS}
            values |= {name: int(file.attrs[name]) for name in NUMBERS}
            values["min_score"] = float(file.attrs["min_score"])
        index = cls(path=path, **values)
        index._check_columns()
        return index

    def _check_columns(self) -> None:
        rows = {len(column) for column in (self.matches, self.image_hash_count, self.embedding) if column is not None}
        matches = {len(self.concept), len(self.score), int(self.count.sum())}
        if self.embedding is not None:
            matches |= {len(self.concept)} if self.embedding.pieces[0].shape[1] == self.dimension else {-1}
        if rows != {self.samples} or len(self.count) != self.concepts or len(matches) != 1:
            raise DataError(f"{self.path} is damaged (its columns do not fit each other): {AGAIN}")


def part_file(k: int) -> str:
    """The file of the samples of part k of the corpus."""
    return f"concepts-{k:06d}.h5"


def write_concept_part(folder: Path, k: int, part: ConceptPart) -> None:
    """Write a part file; there may be no samples in it.

    Raises:
        OSError: as any write.
    """
    types = {**COLUMNS, **({} if part.embedding is None else {EMBEDDING: "<f2"})}
    typed = {name: np.ascontiguousarray(getattr(part, _field(name)), dtype) for name, dtype in types.items()}
    digests = {name: xxhash.xxh3_128_hexdigest(values.data) for name, values in typed.items()}
    attributes = {"format_version": FORMAT_VERSION, "part": k, "fingerprint": value_digest(digests)}
    hdf5.write_part(folder / part_file(k), typed, attributes)


def write_master(folder: Path, parts: int, attributes: Mapping[str, str | int | float]) -> None:
    """Write `concepts.h5` over the part files of a folder.

    `attributes` are those of the file, but for format_version, samples and fingerprint, which follow from the parts.

    Raises:
        OSError: as any write.
        ValueError: a sample has a concept that the vocabulary does not have.
    """
    names = [part_file(k) for k in range(parts)]
    count = np.zeros(int(attributes["concepts"]), np.int64)
    samples, fingerprints = 0, []
    for name in names:
        with h5py.File(folder / name, "r") as source:
            count += np.bincount(source["concepts/concept"][()], minlength=len(count))
            samples += len(source["samples/matches"])
            fingerprints.append(str(source.attrs["fingerprint"]))
    temporary = folder / f".{FILE}.tmp"
    with hdf5.create(temporary) as file:
        file.create_dataset("count", data=count)
        hdf5.add_parts(file, folder, names, [*COLUMNS, *([EMBEDDING] if attributes["dimension"] else [])])
        file.attrs.update(
            attributes,
            samples=samples,
            format_version=FORMAT_VERSION,
            fingerprint=value_digest([FORMAT_VERSION, dict(attributes), fingerprints]),
        )
    temporary.replace(folder / FILE)


def _field(name: str) -> str:
    """The field of a column: images/hash is image_hash."""
    return name.replace("images/", "image_").rpartition("/")[2]
