"""`corpus.h5`: where every sample and image lies in the shards, and how long it is.

Every shard has a part file with the columns of its samples (`onevision.corpus.part`); `corpus.h5` shows them as one.
N samples in the order of the source, I images in the order of their samples:

    /samples/  id S<n> (UTF-8)
               shard i4, json_offset i8, json_size i4: the record's JSON; bytes in the shard
               image_start i8 [N + 1]: the images of sample i are image_start[i] to image_start[i + 1]
               text_tokens i4 (all but the image pads), vision_tokens i4 (the image pads; four patches each)
               category i2, language i2, source i2, license i2: into /tables
               content_hash u8 (xxh3_64 of JSON and image bytes)
    /images/   offset i8, size i8 (bytes in the sample's shard), width i4, height i4 (pixels in the header)
    /tables/   category, language, source, license, shard (strings), shard_bytes i8
    /parts/    the part files: onevision.corpus.hdf5
    attributes format_version, samples, tokenizer, template, min_pixels, max_pixels, fingerprint,
               shard_folder: where the shards lie, relative to the folder of corpus.h5; "" or missing: in it

A corpus of selected rows (`onevision.concepts.balance`) reads the shards of the corpus that it was drawn from:
shard_folder names them. Both folders may be moved together.

image_start, category, language, source, license and the tables lie in `corpus.h5` itself, all other columns are virtual
datasets over the part files. Plain h5py reads them as one, as long as no part file is missing (HDF5 shows its rows as
zeros); `CorpusIndex.open` looks at every part and shard, then maps the columns into memory, so that processes share
them and forking is safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

FORMAT_VERSION = 2
FILE = "corpus.h5"
TABLES = ("category", "language", "source", "license")
SAMPLES = {
    "shard": "<i4",
    "json_offset": "<i8",
    "json_size": "<i4",
    "text_tokens": "<i4",
    "vision_tokens": "<i4",
    "content_hash": "<u8",
}
IMAGES = {"offset": "<i8", "size": "<i8", "width": "<i4", "height": "<i4"}
_PART_COLUMNS = {
    "samples/id": "S",
    **{f"samples/{name}": dtype for name, dtype in SAMPLES.items()},
    **{f"images/{name}": dtype for name, dtype in IMAGES.items()},
}
_OWN_COLUMNS = {"image_start": "<i8", **dict.fromkeys(TABLES, "<i2")}
_PLURALS = {"category": "categories", "language": "languages", "source": "sources", "license": "licenses"}
_PLACES = ("shard", "json_offset", "offset")  # where samples lie is no part of what they are


@dataclass(frozen=True)
class CorpusIndex:
    """An opened `corpus.h5` of N samples and I images: the columns of the file; those of images begin with `image_`."""

    path: Path
    id: Column  # S<n> [N]
    shard: Column  # [N], into `shards`
    json_offset: Column
    json_size: Column
    image_start: NDArray[np.int64]  # [N + 1]: the images of sample i are image_start[i] to image_start[i + 1]
    text_tokens: Column
    vision_tokens: Column
    category: NDArray[np.int16]  # [N], into `categories`
    language: NDArray[np.int16]
    source: NDArray[np.int16]
    license: NDArray[np.int16]
    content_hash: Column
    image_offset: Column  # [I]
    image_size: Column
    image_width: Column
    image_height: Column
    categories: tuple[str, ...]
    languages: tuple[str, ...]
    sources: tuple[str, ...]
    licenses: tuple[str, ...]
    shards: tuple[str, ...]
    shard_bytes: NDArray[np.int64]
    tokenizer: str  # fingerprint
    template: str  # fingerprint
    min_pixels: int
    max_pixels: int
    shard_folder: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.id)

    @property
    def shard_path(self) -> Path:
        """The folder of the shards, unless `data.shards` names another place."""
        return self.path.parent / self.shard_folder

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each encoded sample, int32 [N]; a new array."""
        return np.asarray(self.text_tokens) + np.asarray(self.vision_tokens)

    @property
    def patches(self) -> NDArray[np.int32]:
        """Image patches of each sample, int32 [N]: four to a vision token; a new array."""
        return np.asarray(self.vision_tokens) * 4

    @classmethod
    def open(cls, folder: str | Path, check_shards: bool = True) -> CorpusIndex:
        """Open the index of a corpus folder and check that every part and every shard is there and has its size;
        shards only with `check_shards`, which is right if they lie where the index says.

        Raises:
            InputError: there is no corpus.h5, or it has another format.
            DataError: corpus.h5 is damaged, or a part or a shard is missing, truncated, too long or of another making.
        """
        path = Path(folder) / FILE
        absent = (
            "run `make corpus`, or set data.corpus (of held-out samples: evaluation.corpus) to a corpus folder; of a "
            "balanced selection (data.balanced): run `make balance`, or set data.balanced= to take the whole corpus"
        )
        with hdf5.opened(path, FORMAT_VERSION, absent, "run `make corpus` again") as file:
            index = cls(path=path, **_columns(path, file))
            samples = int(file.attrs["samples"])
        index._check_counts(samples)
        if check_shards:
            index._check_shards()
        return index

    def _check_counts(self, samples: int) -> None:
        names = ("id", *SAMPLES, *TABLES)
        lengths = {len(getattr(self, name)) for name in names} | {len(self.image_start) - 1, samples}
        images = {len(getattr(self, f"image_{name}")) for name in IMAGES} | set(self.image_start[-1:].tolist())
        if len(lengths) != 1 or len(images) != 1 or len(self.shards) != len(self.shard_bytes):
            raise DataError(f"{self.path} is damaged (its columns have different lengths): run `make corpus` again")
        start = self.image_start
        fits = start[0] == 0 and bool((start[1:] >= start[:-1]).all())
        fits &= all(_within(getattr(self, name), len(getattr(self, _PLURALS[name]))) for name in TABLES)
        counts = (*self.text_tokens.pieces, *self.vision_tokens.pieces)
        fits &= all(int(piece.min(initial=0)) >= 0 for piece in counts)
        if not fits or any(Path(name).name != name for name in self.shards):
            raise DataError(f"{self.path} is damaged (its columns do not fit each other): run `make corpus` again")

    def _check_shards(self) -> None:
        for name, size in zip(self.shards, self.shard_bytes.tolist(), strict=True):
            shard = self.shard_path / name
            try:
                found = shard.stat().st_size
            except OSError:
                raise DataError(f"{shard} is missing, {self._says(size)}") from None
            if found != size:
                raise DataError(f"{shard} has {found} bytes, {self._says(size)}")

    def _says(self, size: int) -> str:
        if not self.shard_folder:
            return f"{FILE} says {size} bytes: run `make corpus` again"
        return f"{self.path} says {size} bytes: put the corpus that it was drawn from back, or run `make balance` again"


def _within(values: NDArray[np.integer], count: int) -> bool:
    """Whether all numbers are from 0 to `count` - 1."""
    return not len(values) or 0 <= int(values.min()) <= int(values.max()) < count


class IndexWriter:
    """Collects from the parts, one after the other, what `corpus.h5` itself holds, and the fingerprint."""

    def __init__(self) -> None:
        self._states = {name: xxhash.xxh3_128() for name in sorted(("id_hash", "image_count", *SAMPLES, *IMAGES))}
        self._numbers: dict[str, list[NDArray[np.int16]]] = {name: [] for name in TABLES}
        self._counts: list[NDArray[np.int32]] = []

    def add(
        self,
        samples: Mapping[str, NDArray[Any]],
        numbers: Mapping[str, NDArray[np.int16]],
        images: Mapping[str, NDArray[Any]],
    ) -> None:
        """Take the columns of the next part: those of its samples with id_hash and image_count, its numbers in the
        tables of the corpus, and those of its images."""
        for name, values in (*samples.items(), *images.items()):
            self._states[name].update(values.tobytes())
        for name, values in numbers.items():
            self._numbers[name].append(values)
        self._counts.append(samples["image_count"])

    def write(
        self,
        folder: Path,
        parts: Sequence[str],
        tables: Mapping[str, Sequence[str]],
        shards: Sequence[tuple[str, int]],
        attributes: Mapping[str, str | int],
        shard_folder: str = "",
    ) -> str:
        """Write `corpus.h5` over the part files in `folder`; `shards` are names and bytes, `shard_folder` is where they
        lie, relative to the corpus' folder.

        Returns:
            The corpus fingerprint: of the ids, contents, lengths and attributes in their order. Where they lie is left
            out, so that other shard sizes do not make packs stale.
        """
        numbers = {name: np.concatenate([*found, np.empty(0, np.int16)]) for name, found in self._numbers.items()}
        counts = np.concatenate([*self._counts, np.empty(0, np.int32)])
        start = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=start[1:])
        digests = {name: state.hexdigest() for name, state in self._states.items() if name not in _PLACES}
        digests |= {name: xxhash.xxh3_128_hexdigest(values.tobytes()) for name, values in numbers.items()}
        fingerprint = value_digest([dict(attributes), {name: list(tables[name]) for name in TABLES}, digests])
        temporary = folder / f".{FILE}.tmp"
        with hdf5.create(temporary) as file:
            hdf5.add_parts(file, folder, parts, list(_PART_COLUMNS))
            for name, values in {**numbers, "image_start": start}.items():
                file.create_dataset(f"samples/{name}", data=values)
            for name, strings in {**tables, "shard": [name for name, _ in shards]}.items():
                file.create_dataset(f"tables/{name}", data=list(strings), dtype=h5py.string_dtype())
            file.create_dataset("tables/shard_bytes", data=np.array([size for _, size in shards], "<i8"))
            file.attrs.update(attributes, format_version=FORMAT_VERSION, samples=len(counts), fingerprint=fingerprint)
            file.attrs["shard_folder"] = shard_folder
        temporary.replace(folder / FILE)
        return fingerprint


def _columns(path: Path, file: h5py.File) -> dict[str, Any]:
    shown = hdf5.open_parts(path, file, _PART_COLUMNS)
    values: dict[str, Any] = {
        name.replace("samples/", "").replace("images/", "image_"): column for name, column in shown.items()
    }
    for name, dtype in _OWN_COLUMNS.items():
        values[name] = hdf5.mapped(path, hdf5.own(file, f"samples/{name}", dtype))
    for name, attribute in {**_PLURALS, "shard": "shards"}.items():
        values[attribute] = tuple(hdf5.strings(file, f"tables/{name}"))
    values["shard_bytes"] = hdf5.own(file, "tables/shard_bytes", "<i8")[()]
    values["shard_folder"] = str(file.attrs.get("shard_folder", ""))
    values |= {name: str(file.attrs[name]) for name in ("tokenizer", "template", "fingerprint")}
    return values | {name: int(file.attrs[name]) for name in ("min_pixels", "max_pixels")}
