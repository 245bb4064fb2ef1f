"""`packs.h5`: which samples share a pack, as offsets and corpus row numbers (CSR); no data is copied.

    /pack_start      i8 [M + 1]  pack m holds sample[pack_start[m]:pack_start[m + 1]]
    /sample          i8 [N]      rows of the corpus
    /tokens          i4 [M]      real tokens of a pack, at most sequence_length
    /patches         i4 [M]      image patches of a pack
    /attention_cost  i8 [M]      sum of its squared sample lengths
    attributes       format_version, packs, samples, corpus, tokenizer, template (fingerprints), min_pixels,
                     max_pixels, sequence_length, seed, fingerprint

The columns are contiguous and are mapped into memory, so that processes share them and forking is safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from onevision.corpus.hdf5 import create, mapped
from onevision.corpus.index import CorpusIndex
from onevision.data.template import TEMPLATE_FINGERPRINT
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError, InputError
from onevision.fingerprint import bytes_digest, value_digest
from onevision.recipe import DataRecipe

FORMAT_VERSION = 1
FILE = "packs.h5"
COLUMNS = {"pack_start": "<i8", "sample": "<i8", "tokens": "<i4", "patches": "<i4", "attention_cost": "<i8"}
AGAIN = "run `make pack` again"
FINGERPRINTS = ("corpus", "tokenizer", "template", "fingerprint")
NUMBERS = ("packs", "samples", "min_pixels", "max_pixels", "sequence_length", "seed")


@dataclass(frozen=True)
class PackIndex:
    """An opened `packs.h5` of M packs and N samples; columns and attributes as in the file."""

    path: Path
    pack_start: NDArray[np.int64]  # [M + 1]
    sample: NDArray[np.int64]  # [N]
    tokens: NDArray[np.int32]  # [M]
    patches: NDArray[np.int32]  # [M]
    attention_cost: NDArray[np.int64]  # [M]
    corpus: str
    tokenizer: str
    template: str
    packs: int
    samples: int
    min_pixels: int
    max_pixels: int
    sequence_length: int
    seed: int
    fingerprint: str

    def samples_of(self, pack: int) -> list[int]:
        """Corpus rows of one pack, in the order in which they follow each other."""
        return self.sample[self.pack_start[pack] : self.pack_start[pack + 1]].tolist()

    @classmethod
    def open(cls, folder: str | Path) -> PackIndex:
        """Open the index of a packs folder and check that its columns fit each other.

        Raises:
            InputError: there is no packs.h5, or it has another format.
            DataError: packs.h5 is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise InputError(f"{path} does not exist: run `make pack`, or set data.packs to a packs folder")
        try:
            with h5py.File(path, "r") as file:
                version = file.attrs["format_version"]
                if version != FORMAT_VERSION:
                    raise InputError(f"{path} has format {version}, not {FORMAT_VERSION}: {AGAIN}")
                values: dict[str, Any] = {name: mapped(path, file[name]) for name in COLUMNS}
                values |= {name: str(file.attrs[name]) for name in FINGERPRINTS}
                values |= {name: int(file.attrs[name]) for name in NUMBERS}
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}): {AGAIN}") from None
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
        lowest, highest = self.sample.min(), self.sample.max()
        if lowest < 0 or highest >= len(corpus):
            raise DataError(
                f"{self.path} is damaged (rows {lowest} to {highest} of a corpus of {len(corpus)}): {AGAIN}"
            )

    def _check_columns(self) -> None:
        start = self.pack_start
        counts = {len(column) for column in (self.tokens, self.patches, self.attention_cost, start[1:])}
        fits = counts == {self.packs} and self.packs > 0 and len(self.sample) == self.samples
        if not fits or start[[0, -1]].tolist() != [0, self.samples] or np.diff(start).min() < 1:
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
        "seed": data.pack_seed,
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


def write_packs(path: Path, columns: Mapping[str, NDArray[Any]], attributes: Mapping[str, str | int]) -> str:
    """Write `packs.h5` from its columns (named as in `COLUMNS`).

    Returns:
        The fingerprint of the packs: of all columns and attributes.
    """
    typed = {name: np.ascontiguousarray(columns[name], dtype=dtype) for name, dtype in COLUMNS.items()}
    digests = {name: bytes_digest(values.tobytes()) for name, values in typed.items()}
    fingerprint = value_digest([FORMAT_VERSION, dict(attributes), digests])
    with create(path) as file:
        for name, values in typed.items():
            file.create_dataset(name, data=values)
        counts = {"packs": len(typed["tokens"]), "samples": len(typed["sample"])}
        file.attrs.update(attributes, **counts, format_version=FORMAT_VERSION, fingerprint=fingerprint)
    return fingerprint
