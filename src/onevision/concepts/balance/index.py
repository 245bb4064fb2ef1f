"""`balance.h5`: the weight and the fate of every sample of a corpus from which a balanced selection was drawn.

N samples in the order of the corpus, C concepts of the vocabulary:

    /weight        f4 [N]  by the rarity of its concepts (`onevision.concepts.balance.weights`); 0 for a duplicate
    /fate          u1 [N]  0 drawn, 1 not drawn, 2 duplicate by embedding, 3 duplicate by image hash
    /count_before  i8 [C]  samples with a concept, duplicates left out
    /count_after   i8 [C]  drawn samples with it
    /count_random  i8 [C]  samples with it in a seeded random draw of as many samples, to compare with
    /parts/        the part files: onevision.corpus.hdf5
    attributes     format_version, samples, concepts, drawn, corpus, index (the concept index), vocabulary
                   (fingerprints), settings (JSON: how it was drawn), fingerprint: of all of this

weight and fate are virtual datasets over part files, `balance-000000.h5` and so on: one for each part of the corpus.
Beside it, in the same folder, lies the corpus index of the drawn samples (`onevision.corpus.index`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.corpus import hdf5
from onevision.corpus.hdf5 import Column
from onevision.errors import DataError
from onevision.fingerprint import value_digest

FORMAT_VERSION = 1
FILE = "balance.h5"
AGAIN = "run `make balance` again"
COLUMNS = {"weight": "<f4", "fate": "u1"}
COUNTS = ("count_before", "count_after", "count_random")
DRAWN, NOT_DRAWN, SAME_EMBEDDING, SAME_IMAGES = range(4)
STRINGS = ("corpus", "index", "vocabulary", "fingerprint")


@dataclass(frozen=True)
class BalanceIndex:
    """An opened `balance.h5`; columns and attributes as in the file."""

    path: Path
    weight: Column  # float32 [N]
    fate: Column  # uint8 [N]
    count_before: NDArray[np.int64]  # [C]
    count_after: NDArray[np.int64]
    count_random: NDArray[np.int64]
    samples: int
    concepts: int
    drawn: int
    corpus: str
    index: str
    vocabulary: str
    settings: Mapping[str, Any]
    fingerprint: str

    def __len__(self) -> int:
        return self.samples

    @classmethod
    def open(cls, folder: str | Path) -> BalanceIndex:
        """Open the index of a balanced folder; check that its parts are there and that its columns fit each other.

        Raises:
            InputError: there is no balance.h5, or it has another format.
            DataError: balance.h5 is damaged, or a part of it is missing or another one than it was.
        """
        path = Path(folder) / FILE
        absent = "run `make balance`, or set data.balanced to its folder"
        with hdf5.opened(path, FORMAT_VERSION, absent, AGAIN) as file:
            values: dict[str, Any] = {
                name: hdf5.mapped(path, hdf5.own(file, name, "<i8")) for name in COUNTS
            }
            values |= hdf5.open_parts(path, file, COLUMNS)
            values |= {name: str(file.attrs[name]) for name in STRINGS}
            values |= {name: int(file.attrs[name]) for name in ("samples", "concepts", "drawn")}
            values["settings"] = dict(json.loads(file.attrs["settings"]))
        index = cls(path=path, **values)
        lengths = {len(getattr(index, name)) for name in COUNTS}
        fates = all(int(piece.max(initial=0)) <= SAME_IMAGES for piece in index.fate.pieces)
        if {len(index.weight), len(index.fate)} != {index.samples} or lengths != {index.concepts} or not fates:
            raise DataError(f"{path} is damaged (its columns do not fit each other): {AGAIN}")
        return index


def part_file(k: int) -> str:
    """The file of the samples of part k of the corpus."""
    return f"balance-{k:06d}.h5"


def write_balance_part(folder: Path, k: int, weight: NDArray[np.float32], fate: NDArray[np.uint8]) -> str:
    """Write a part file; returns its fingerprint.

    Raises:
        OSError: as any write.
    """
    columns = {"weight": np.ascontiguousarray(weight, "<f4"), "fate": np.ascontiguousarray(fate, "u1")}
    digests = {name: xxhash.xxh3_128_hexdigest(values.data) for name, values in columns.items()}
    attributes = {"format_version": FORMAT_VERSION, "part": k, "fingerprint": value_digest(digests)}
    hdf5.write_part(folder / part_file(k), columns, attributes)
    return str(attributes["fingerprint"])


def write_balance_master(
    folder: Path,
    fingerprints: list[str],
    counts: Mapping[str, NDArray[np.int64]],
    attributes: Mapping[str, str | int],
    settings: Mapping[str, Any],
) -> str:
    """Write `balance.h5` over the part files of a folder; returns its fingerprint.

    `fingerprints` are those of the parts, `counts` those of `COUNTS`; `attributes` are samples, drawn, corpus, index
    and vocabulary.

    Raises:
        OSError: as any write.
    """
    typed = {name: np.ascontiguousarray(counts[name], "<i8") for name in COUNTS}
    digests = [xxhash.xxh3_128_hexdigest(values.data) for values in typed.values()]
    fingerprint = value_digest([FORMAT_VERSION, dict(attributes), dict(settings), fingerprints, digests])
    temporary = folder / f".{FILE}.tmp"
    with hdf5.create(temporary) as file:
        for name, values in typed.items():
            file.create_dataset(name, data=values)
        hdf5.add_parts(file, folder, [part_file(k) for k in range(len(fingerprints))], list(COLUMNS))
        file.attrs.update(attributes, concepts=len(typed["count_before"]), format_version=FORMAT_VERSION)
        file.attrs.update(settings=json.dumps(dict(settings), sort_keys=True), fingerprint=fingerprint)
    temporary.replace(folder / FILE)
    return fingerprint
