from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from onevision.corpus.index import CorpusIndex
from onevision.corpus.record import Record
from onevision.data.decode import image_patches
from onevision.data.image import image_size
from onevision.data.template import TEMPLATE_FINGERPRINT, encode
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError
from onevision.recipe import DataRecipe
from tests.fixtures import edited


def test_columns_describe_the_records(corpus: Path, data: DataRecipe, records: list[Record]) -> None:
    index = CorpusIndex.open(corpus)
    assert len(index) == len(records)
    assert np.asarray(index.id).tolist() == [record.id.encode() for record in records]
    for column, table in [("category", "categories"), ("language", "languages"), ("source", "sources"),
                          ("license", "licenses")]:  # fmt: skip
        names = getattr(index, table)
        assert [names[k] for k in getattr(index, column)] == [getattr(record, column) for record in records]
    assert np.diff(index.image_start).tolist() == [len(record.images) for record in records]
    sizes = [image_size(image) for record in records for image in record.images]
    assert list(zip(index.image_width, index.image_height, strict=True)) == sizes
    assert list(index.image_size) == [len(image) for record in records for image in record.images]
    assert index.tokenizer == load_tokenizer(data.tokenizer).fingerprint
    assert (index.template, index.min_pixels, index.max_pixels) == (TEMPLATE_FINGERPRINT, 3136, 2_560_000)


def test_lengths_are_those_of_the_encoded_samples(corpus: Path, data: DataRecipe, records: list[Record]) -> None:
    index, tokenizer = CorpusIndex.open(corpus), load_tokenizer(data.tokenizer)
    for row, record in enumerate(records):
        grids = [image_patches(image, data.min_pixels, data.max_pixels)[1] for image in record.images]
        sample = encode(record, tokenizer, [h * w // 4 for _, h, w in grids])
        assert index.lengths[row] == len(sample.ids)
        assert index.patches[row] == sum(h * w for _, h, w in grids)
    assert index.lengths.dtype == np.int32


def test_file_layout(corpus: Path) -> None:
    with h5py.File(corpus / "corpus.h5") as file:
        types = {name: file["samples"][name].dtype.str for name in file["samples"]}
        assert types.pop("id") == "|S12"
        assert types == {
            "shard": "<i4", "json_offset": "<i8", "json_size": "<i4", "image_start": "<i8", "text_tokens": "<i4",
            "vision_tokens": "<i4", "category": "<i2", "language": "<i2", "source": "<i2", "license": "<i2",
            "content_hash": "<u8",
        }  # fmt: skip
        assert {name: file["images"][name].dtype.str for name in file["images"]} == {
            "offset": "<i8", "size": "<i8", "width": "<i4", "height": "<i4",
        }  # fmt: skip
        assert all(file[f"samples/{name}"].chunks is None for name in file["samples"])
        assert set(file["tables"]) == {"category", "language", "source", "license", "shard", "shard_bytes"}
        assert file.attrs["samples"] == 23 and file.attrs["format_version"] == 2
        own = {name for name in file["samples"] if not file[f"samples/{name}"].is_virtual}
        assert own == {"image_start", "category", "language", "source", "license"}
        index = CorpusIndex.open(corpus)
        for name in file["samples"]:  # plain h5py reads what the index maps
            np.testing.assert_array_equal(file[f"samples/{name}"][()], np.asarray(getattr(index, name)))
        for name in file["images"]:
            np.testing.assert_array_equal(file[f"images/{name}"][()], np.asarray(getattr(index, f"image_{name}")))


def test_missing_corpus_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.h5 does not exist: run `make corpus`"):
        CorpusIndex.open(tmp_path)


def test_another_format_is_refused(corpus: Path) -> None:
    with edited(corpus / "corpus.h5") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(InputError, match="has format 99, not 2"):
        CorpusIndex.open(corpus)


def test_a_truncated_shard_is_seen_on_opening(corpus: Path) -> None:
    shard = corpus / "shard-000002.tar"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(DataError) as raised:
        CorpusIndex.open(corpus)
    message = str(raised.value)
    assert all(part in message for part in (str(shard), str(size), str(size - 1), "make corpus")), message


def test_a_missing_shard_is_seen_on_opening(corpus: Path) -> None:
    (corpus / "shard-000004.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000004\.tar is missing, corpus\.h5 says \d+ bytes: run `make corpus`"):
        CorpusIndex.open(corpus)


@pytest.mark.parametrize("keep", [0, 10, 2000, -1])
def test_a_damaged_index_is_one_line(corpus: Path, keep: int) -> None:
    path = corpus / "corpus.h5"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="is damaged") as raised:
        CorpusIndex.open(corpus)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["category", "image_start"])
def test_columns_of_different_lengths_are_refused(corpus: Path, name: str) -> None:
    with edited(corpus / "corpus.h5") as file:
        values = file[f"samples/{name}"][:-1]
        del file[f"samples/{name}"]
        file[f"samples/{name}"] = values
    with pytest.raises(DataError, match="columns have different lengths"):
        CorpusIndex.open(corpus)


def test_a_missing_or_foreign_part_is_seen_on_opening(corpus: Path) -> None:
    part, other = corpus / "part-000001.h5", corpus / "part-000003.h5"
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(DataError, match=r"part-000001\.h5 is missing, corpus\.h5 says \d+ bytes: run `make corpus`"):
        CorpusIndex.open(corpus)
    part.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"part-000001\.h5 has \d+ bytes, corpus\.h5 says \d+: run `make corpus`"):
        CorpusIndex.open(corpus)
    with h5py.File(other, "r") as file:
        fingerprint = str(file.attrs["fingerprint"]).encode()
    with h5py.File(corpus / "corpus.h5", "r") as file:
        ours = file["parts/fingerprint"].asstr()[1].encode()
    part.write_bytes(content.replace(ours, fingerprint))
    with pytest.raises(DataError, match=r"part-000001\.h5 has fingerprint .*, corpus\.h5 says .*: run `make corpus`"):
        CorpusIndex.open(corpus)
