"""`packs.h5`: which samples share a pack, as offsets and corpus row numbers (CSR); no data is copied.

    /pack_start      i8 [M + 1]  pack m holds sample[pack_start[m]:pack_start[m + 1]]
    /sample          i8 [N]      rows of the corpus
    /tokens          i4 [M]      real tokens of a pack, at most sequence_length
    /patches         i4 [M]      image patches of a pack, at most max_patches where that is not 0
    /attention_cost  i8 [M]      sum of its squared sample lengths, at most max_attention_cost where that is not 0
    /parts/          name, bytes, fingerprint of each part file (only where there are part files)
    attributes       format_version, packs, samples,
                     corpus, tokenizer, template (fingerprints), min_pixels, max_pixels: the samples' lengths,
                     sequence_length, max_patches, max_attention_cost, seed, part_samples: how they were packed,
                     fingerprint: of all of this

All columns but pack_start lie in part files beside it, `packs-00000.h5` and so on, each written by one process; in
packs.h5 they are virtual datasets that show the parts one after the other, so that h5py reads it like any other file.
A part file has the same columns (its pack_start counts its own samples) and its fingerprint as an attribute. With
`data.single_file` the columns lie in packs.h5 itself. Columns are contiguous and are mapped into memory, so that
processes share them and forking is safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.corpus.hdf5 import Column, add_parts, create, mapped, open_parts, opened, own, write_part
from onevision.corpus.index import CorpusIndex
from onevision.data.template import TEMPLATE_FINGERPRINT
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError, InputError
from onevision.fingerprint import value_digest
from onevision.recipe import DataRecipe

FORMAT_VERSION = 2
FILE = "packs.h5"
COLUMNS = {"sample": "<i8", "tokens": "<i4", "patches": "<i4", "attention_cost": "<i8"}
START = "pack_start"
AGAIN = "run `make pack` again"
FINGERPRINTS = ("corpus", "tokenizer", "template", "fingerprint")
NUMBERS = (
    "packs",
    "samples",
    "min_pixels",
    "max_pixels",
    "sequence_length",
    "max_patches",
    "max_attention_cost",
    "seed",
    "part_samples",
)


@dataclass(frozen=True)
class PackIndex:
    """An opened `packs.h5` of M packs and N samples; columns and attributes as in the file."""

    path: Path
    pack_start: NDArray[np.int64]  # [M + 1]
    sample: Column  # int64 [N]
    tokens: Column  # int32 [M]
    patches: Column  # int32 [M]
    attention_cost: Column  # int64 [M]
    corpus: str
    tokenizer: str
    template: str
    packs: int
    samples: int
    min_pixels: int
    max_pixels: int
    sequence_length: int
    max_patches: int
    max_attention_cost: int
    seed: int
    part_samples: int
    fingerprint: str

    def samples_of(self, pack: int) -> list[int]:
        """Corpus rows of one pack, in the order in which they follow each other."""
        return self.sample[int(self.pack_start[pack]) : int(self.pack_start[pack + 1])].tolist()

    @property
    def most_patches(self) -> int:
        """Image patches of the pack that has most."""
        return max(int(piece.max(initial=0)) for piece in self.patches.pieces)

    @classmethod
    def open(cls, folder: str | Path) -> PackIndex:
        """Open the index of a packs folder; check that its parts are there and that its columns fit each other.

        Raises:
            InputError: there is no packs.h5, or it has another format.
            DataError: packs.h5 is damaged, or a part of it is missing or another one than it was.
        """
        path = Path(folder) / FILE
        absent = "run `make pack`, or set data.packs to a packs folder"
        with opened(path, FORMAT_VERSION, absent, AGAIN) as file:
            values: dict[str, Any] = {START: mapped(path, own(file, START, "<i8"))}
            if "parts" in file:
                values |= open_parts(path, file, COLUMNS)
            else:
                values |= {name: Column([mapped(path, own(file, name, dtype))]) for name, dtype in COLUMNS.items()}
            values |= {name: str(file.attrs[name]) for name in FINGERPRINTS}
            values |= {name: int(file.attrs[name]) for name in NUMBERS}
        index = cls(path=path, **values)
        index._check_columns()
        return index

    def check_against(self, corpus: CorpusIndex, data: DataRecipe, tokenizer: Tokenizer) -> None:
        """Refuse packs that were not made for this corpus, recipe and tokenizer.

        Raises:
            InputError: naming the file, both values, and what to run.
            DataError: a row number is not in the corpus.
        """
        check_attributes(self, pack_attributes(corpus, data, tokenizer), "make pack")
        pieces = [piece for piece in self.sample.pieces if len(piece)]
        lowest, highest = min(piece.min() for piece in pieces), max(piece.max() for piece in pieces)
        if lowest < 0 or highest >= len(corpus):
            raise DataError(
                f"{self.path} is damaged (rows {lowest} to {highest} of a corpus of {len(corpus)}): {AGAIN}"
            )

    def _check_columns(self) -> None:
        start = self.pack_start
        counts = {len(column) for column in (self.tokens, self.patches, self.attention_cost, start[1:])}
        fits = counts == {self.packs} and self.packs > 0 and len(self.sample) == self.samples
        if fits:
            fits = start[[0, -1]].tolist() == [0, self.samples] and bool((start[1:] > start[:-1]).all())
        for column, most in ((self.tokens, self.sequence_length), (self.patches, None), (self.attention_cost, None)):
            for piece in column.pieces:
                fits &= piece.min(initial=0) >= 0 and (most is None or piece.max(initial=0) <= most)
        if not fits:
            raise DataError(f"{self.path} is damaged (its columns do not fit each other): {AGAIN}")


def length_attributes(data: DataRecipe, tokenizer: Tokenizer) -> dict[str, str | int]:
    """What the length of a sample depends on; a corpus is measured for one set of these."""
    return {
        "tokenizer": tokenizer.fingerprint,
        "template": TEMPLATE_FINGERPRINT,
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
    }


def pack_attributes(corpus: CorpusIndex, data: DataRecipe, tokenizer: Tokenizer) -> dict[str, str | int]:
    """What packs depend on."""
    return {
        **length_attributes(data, tokenizer),
        "sequence_length": data.sequence_length,
        "max_patches": data.max_patches,
        "max_attention_cost": data.max_attention_cost,
        "seed": data.pack_seed,
        "part_samples": data.pack_part_samples,
        "corpus": corpus.fingerprint,
    }


def check_attributes(index: CorpusIndex | PackIndex, ours: Mapping[str, str | int], command: str) -> None:
    """Refuse an index that was made for other attributes than ours.

    Raises:
        InputError: naming the file, the first attribute that differs, both values, and `command`.
    """
    for name, value in ours.items():
        made = getattr(index, name)
        if made != value:
            raise InputError(
                f"{index.path} was made with {name}={made}, this run has {value}: run `{command}` again"
            )


def part_file(part: int) -> str:
    """Name of a part file."""
    return f"packs-{part:05d}.h5"


def write_pack_part(folder: Path, part: int, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write a part file from its columns: pack_start (from 0) and those of `COLUMNS`; there may be no packs.

    Raises:
        OSError: as any write.
    """
    typed = {name: np.ascontiguousarray(columns[name], dtype) for name, dtype in {START: "<i8", **COLUMNS}.items()}
    digests = {name: xxhash.xxh3_128_hexdigest(values.data) for name, values in typed.items()}
    attributes = {"format_version": FORMAT_VERSION, "part": part, "fingerprint": value_digest(digests)}
    write_part(folder / part_file(part), typed, attributes)


def write_master(folder: Path, parts: int, attributes: Mapping[str, str | int]) -> None:
    """Write `packs.h5` over the part files of a folder; `attributes` are those of `pack_attributes`.

    The fingerprint is of the attributes and of all columns part by part: the same for one file as for many.

    Raises:
        OSError: as any write.
    """
    names = [part_file(part) for part in range(parts)]
    starts, samples, fingerprints = [np.zeros(1, np.int64)], 0, []
    for name in names:
        with h5py.File(folder / name, "r") as source:
            starts.append(source[START][1:] + samples)
            samples += len(source["sample"])
            fingerprints.append(str(source.attrs["fingerprint"]))
    pack_start = np.concatenate(starts)
    with create(folder / FILE) as file:
        file.create_dataset(START, data=pack_start)
        add_parts(file, folder, names, list(COLUMNS))
        file.attrs.update(
            attributes,
            packs=len(pack_start) - 1,
            samples=samples,
            format_version=FORMAT_VERSION,
            fingerprint=value_digest([FORMAT_VERSION, dict(attributes), fingerprints]),
        )
