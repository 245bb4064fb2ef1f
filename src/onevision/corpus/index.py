"""`corpus.h5`: where every sample and image lies in the shards, and how long it is.

    /samples/  id S<n>, shard i4, json_offset i8, json_size i4, image_start i8 [N + 1], text_tokens i4,
               vision_tokens i4, category i2, language i2, source i2, license i2,
               content_hash u8 (xxh3_64 of JSON and image bytes)
    /images/   offset i8, size i8 (bytes in the sample's shard), width i4, height i4 (pixels in the header)
    /tables/   category, language, source, license, shard (strings), shard_bytes i8
    attributes format_version, samples, tokenizer, template, min_pixels, max_pixels, fingerprint

The columns are contiguous and are mapped into memory, so that processes share them and forking is safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from onevision.corpus import hdf5
from onevision.errors import DataError, InputError
from onevision.fingerprint import value_digest

FORMAT_VERSION = 1
FILE = "corpus.h5"
TABLES = ("category", "language", "source", "license")
SAMPLES = {
    "shard": "<i4",
    "json_offset": "<i8",
    "json_size": "<i4",
    "text_tokens": "<i4",
    "vision_tokens": "<i4",
    "category": "<i2",
    "language": "<i2",
    "source": "<i2",
    "license": "<i2",
    "content_hash": "<u8",
}
IMAGES = {"offset": "<i8", "size": "<i8", "width": "<i4", "height": "<i4"}


@dataclass(frozen=True)
class CorpusIndex:
    """An opened `corpus.h5` of N samples and I images: the columns of the file; those of images begin with `image_`."""

    path: Path
    id: np.ndarray  # S<n> [N]
    shard: np.ndarray  # [N], into `shards`
    json_offset: np.ndarray
    json_size: np.ndarray
    image_start: np.ndarray  # [N + 1]: the images of sample i are image_start[i] to image_start[i + 1]
    text_tokens: np.ndarray
    vision_tokens: np.ndarray
    category: np.ndarray  # [N], into `categories`
    language: np.ndarray
    source: np.ndarray
    license: np.ndarray
    content_hash: np.ndarray
    image_offset: np.ndarray  # [I]
    image_size: np.ndarray
    image_width: np.ndarray
    image_height: np.ndarray
    categories: tuple[str, ...]
    languages: tuple[str, ...]
    sources: tuple[str, ...]
    licenses: tuple[str, ...]
    shards: tuple[str, ...]
    shard_bytes: np.ndarray
    tokenizer: str  # fingerprint
    template: str  # fingerprint
    min_pixels: int
    max_pixels: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.id)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each encoded sample, int32 [N]."""
        return self.text_tokens + self.vision_tokens

    @property
    def patches(self) -> np.ndarray:
        """Image patches of each sample, int32 [N]: four to a vision token."""
        return self.vision_tokens * 4

    @classmethod
    def open(cls, folder: str | Path, check_shards: bool = True) -> CorpusIndex:
        """Open the index of a corpus folder and check that every shard is there and has its size, unless they lie
        elsewhere.

        Raises:
            InputError: there is no corpus.h5, or it has another format.
            DataError: corpus.h5 is damaged, or a shard is missing, truncated or too long.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise InputError(f"{path} does not exist: run `make corpus`, or set data.corpus to a corpus folder")
        try:
            with h5py.File(path, "r") as file:
                version = file.attrs["format_version"]
                if version != FORMAT_VERSION:
                    raise InputError(f"{path} has format {version}, not {FORMAT_VERSION}: run `make corpus` again")
                index = cls(path=path, **_columns(path, file))
                samples = int(file.attrs["samples"])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}): run `make corpus` again") from None
        index._check_counts(samples)
        if check_shards:
            index._check_shards()
        return index

    def _check_counts(self, samples: int) -> None:
        lengths = {len(getattr(self, name)) for name in ("id", *SAMPLES)} | {len(self.image_start) - 1, samples}
        images = {len(getattr(self, f"image_{name}")) for name in IMAGES} | {int(self.image_start[-1])}
        if len(lengths) != 1 or len(images) != 1:
            raise DataError(f"{self.path} is damaged (its columns have different lengths): run `make corpus` again")

    def _check_shards(self) -> None:
        for name, size in zip(self.shards, self.shard_bytes, strict=True):
            shard = self.path.parent / name
            if not shard.is_file():
                raise DataError(f"{shard} is missing, {FILE} says {size} bytes: run `make corpus` again")
            found = shard.stat().st_size
            if found != size:
                raise DataError(f"{shard} has {found} bytes, {FILE} says {size}: run `make corpus` again")


def write_index(
    path: Path,
    ids: Sequence[bytes],
    samples: Mapping[str, Sequence[int]],
    image_start: Sequence[int],
    images: Mapping[str, Sequence[int]],
    tables: Mapping[str, Sequence[str]],
    shards: Sequence[tuple[str, int]],
    attributes: Mapping[str, str | int],
) -> str:
    """Write `corpus.h5` from its columns; `shards` are names and bytes.

    Returns:
        The corpus fingerprint: of the ids, contents, lengths and attributes in their order. Where they lie is left
        out, so that other shard sizes do not make packs stale.
    """
    columns = {f"samples/{name}": np.array(samples[name], dtype=dtype) for name, dtype in SAMPLES.items()}
    columns |= {f"images/{name}": np.array(images[name], dtype=dtype) for name, dtype in IMAGES.items()}
    columns["samples/id"] = np.array(ids, dtype="S")
    columns["samples/image_start"] = np.array(image_start, dtype="<i8")
    columns["tables/shard_bytes"] = np.array([size for _, size in shards], dtype="<i8")
    state = xxhash.xxh3_128(value_digest([dict(attributes), dict(tables)]).encode())
    for name in sorted(columns):
        if name.partition("/")[2] not in ("shard", "shard_bytes", "json_offset", "offset"):
            state.update(columns[name].tobytes())
    fingerprint = state.hexdigest()
    with hdf5.create(path) as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)
        for name, strings in {**tables, "shard": [name for name, _ in shards]}.items():
            file.create_dataset(f"tables/{name}", data=list(strings), dtype=h5py.string_dtype())
        file.attrs.update(attributes, format_version=FORMAT_VERSION, samples=len(ids), fingerprint=fingerprint)
    return fingerprint


def _columns(path: Path, file: h5py.File) -> dict[str, Any]:
    names = ("id", "image_start", *SAMPLES)
    values: dict[str, Any] = {name: hdf5.mapped(path, file[f"samples/{name}"]) for name in names}
    values |= {f"image_{name}": hdf5.mapped(path, file[f"images/{name}"]) for name in IMAGES}
    plural = {"category": "categories", "language": "languages", "source": "sources", "license": "licenses"}
    for name, attribute in {**plural, "shard": "shards"}.items():
        values[attribute] = tuple(file[f"tables/{name}"].asstr()[()].tolist())
    values["shard_bytes"] = file["tables/shard_bytes"][()]
    values |= {name: str(file.attrs[name]) for name in ("tokenizer", "template", "fingerprint")}
    return values | {name: int(file.attrs[name]) for name in ("min_pixels", "max_pixels")}
