"""`vocabulary.h5`: the concepts that samples are joined with, and their embeddings.

    /name        S<n> [C] (UTF-8), also in concepts.txt, one a line
    /provenance  u1 [C]  sum of 1 (wordnet), 2 (words), 4 (bigrams), 8 (titles), 16 (lists): all sources that name it
    /frequency   i8 [C]  the largest count or number of views that a source gives it, 0 where none does
    /embedding   f2 [C, D]  of unit length
    attributes   format_version, concepts, dimension, encoder (fingerprint), templates (JSON), fingerprint (of all)

Concepts come in the order of `SOURCES`, and of each source. The embedding is contiguous and is mapped into memory, so
that processes share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.corpus.hdf5 import create, mapped
from onevision.errors import DataError, InputError
from onevision.files import write_text
from onevision.fingerprint import bytes_digest, value_digest

FORMAT_VERSION = 1
FILE = "vocabulary.h5"
LIST = "concepts.txt"
SOURCES = ("wordnet", "words", "bigrams", "titles", "lists")
AGAIN = "run `make vocabulary` again"


@dataclass(frozen=True)
class Vocabulary:
    """An opened `vocabulary.h5` of C concepts with embeddings of D values."""

    path: Path
    names: tuple[str, ...]  # [C]
    provenance: NDArray[np.uint8]  # [C], bits in the order of `SOURCES`
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
        if not path.is_file():
            raise InputError(f"{path} does not exist: run `make vocabulary`, or set concepts.vocabulary to its folder")
        try:
            with h5py.File(path, "r") as file:
                version = file.attrs["format_version"]
                if version != FORMAT_VERSION:
                    raise InputError(f"{path} has format {version}, not {FORMAT_VERSION}: {AGAIN}")
                vocabulary = cls(
                    path=path,
                    names=tuple(name.decode() for name in file["name"][()].tolist()),
                    provenance=file["provenance"][()],
                    frequency=file["frequency"][()],
                    embedding=mapped(path, file["embedding"]),
                    dimension=int(file.attrs["dimension"]),
                    encoder=str(file.attrs["encoder"]),
                    templates=tuple(json.loads(file.attrs["templates"])),
                    fingerprint=str(file.attrs["fingerprint"]),
                )
                concepts = int(file.attrs["concepts"])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}): {AGAIN}") from None
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
