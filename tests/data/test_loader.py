"""The loader on a small real corpus: a pure function of the step, with workers and without."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onevision.corpus.build import build_corpus
from onevision.corpus.reader import CorpusReader
from onevision.corpus.record import Record
from onevision.data.batch import PackedBatch
from onevision.data.decode import image_patches
from onevision.data.image import image_size, patch_grid
from onevision.data.loader import PackLoader
from onevision.data.schedule import pack_ids
from onevision.data.template import encode
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError
from onevision.packing.build import build_packs
from onevision.packing.index import PackIndex
from onevision.recipe import DataRecipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records

SAMPLES = 70
T = 512


def build(root: Path, records: list[Record]) -> DataRecipe:
    """A corpus and packs of these records below `root`."""
    tiny_tokenizer(root / "tokenizer")
    write_records(root / "records", records)
    data = DataRecipe(
        source=str(root / "records"), corpus=str(root / "corpus"), packs=str(root / "packs"),
        tokenizer=str(root / "tokenizer"), sequence_length=T, shard_samples=25, workers=0, max_pixels=60_000,
    )  # fmt: skip
    build_corpus(data, data.corpus)
    build_packs(data, data.packs)
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    """Samples with none to three images (some above max_pixels) and one to three turns."""
    records = [sample_record(i, images=i % 4, turns=1 + i % 3) for i in range(SAMPLES - 2)]
    records += [sample_record(SAMPLES - 2, images=[(400, 300)])]
    records += [sample_record(SAMPLES - 1, images=[(40, 700)])]
    return build(tmp_path_factory.mktemp("loader"), records)


def loader_of(data: DataRecipe, **options: int) -> PackLoader:
    options = {"seed": 3, "global_batch_size": 4, "micro_batch_size": 1, **options}
    parts = CorpusReader(data.corpus), PackIndex.open(data.packs), load_tokenizer(data.tokenizer)
    return PackLoader(*parts, data, **options)


def assert_same(one: list[PackedBatch], other: list[PackedBatch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name, value in vars(a).items():
            found = getattr(b, name)
            if torch.is_tensor(value):
                assert value.dtype == found.dtype and torch.equal(value, found), name
            else:
                assert value == found, name


def rows(batches: list[PackedBatch]) -> list[int]:
    return [row for batch in batches for row in batch.sample_ids.tolist()]


def test_corpus_length_is_encoded_length_is_segment_length(data: DataRecipe) -> None:
    loader = loader_of(data, global_batch_size=1)
    packs, index = loader.packs, loader.corpus.index
    seen = []
    for step in range(packs.packs):
        (batch,) = loader.batches(step)
        lengths = batch.cu_seqlens.diff()
        assert torch.equal(lengths[:-1].long(), batch.sample_lengths[:-1])  # the last also holds the filling
        (pack,) = pack_ids(step, packs.packs, 1, loader.seed).tolist()
        assert batch.sample_ids.tolist() == packs.samples_of(pack)
        assert batch.real_tokens == packs.tokens[pack]
        assert len(batch.patches) == packs.patches[pack]
        assert (batch.sample_lengths**2).sum() == packs.attention_cost[pack]
        for s, row in enumerate(batch.sample_ids.tolist()):
            record = loader.corpus.record(row)
            sizes = [image_size(image) for image in record.images]
            grids = [patch_grid(*size, data.min_pixels, data.max_pixels) for size in sizes]
            encoded = encode(record, loader.tokenizer, [h * w // 4 for h, w in grids])
            start, length = int(batch.cu_seqlens[s]), int(batch.sample_lengths[s])
            assert length == len(encoded.ids) == index.lengths[row]
            assert np.array_equal(batch.tokens[start : start + length].numpy(), encoded.ids)
            assert index.categories[batch.segment_category[s]] == record.category
            seen.append(row)
    assert sorted(seen) == list(range(SAMPLES)), "each epoch visits every pack, and so every sample, once"


def test_patches_are_those_of_the_images_in_the_order_of_the_slots(data: DataRecipe) -> None:
    loader = loader_of(data, micro_batch_size=2)
    images = 0
    for step in range(4):
        for batch in loader.batches(step):
            assert batch.tokens.shape == (2 * T,) and batch.cu_seqlens[-1] == 2 * T
            assert batch.cu_seqlens.diff().min() > 0
            assert len(batch.image_slots) * 4 == len(batch.patches)
            assert (batch.tokens[batch.image_slots] == loader.tokenizer.image_pad).all()
            expected = [
                image_patches(image, data.min_pixels, data.max_pixels)
                for row in batch.sample_ids.tolist()
                for image in loader.corpus.record(row).images
            ]
            assert np.array_equal(batch.patches.numpy(), np.concatenate([patches for patches, _ in expected]))
            assert batch.grid_thw.tolist() == [list(grid) for _, grid in expected]
            images += len(expected)
    assert images > 20


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_first_step_change_nothing(data: DataRecipe, workers: int) -> None:
    inline = loader_of(data, micro_batch_size=2)
    loader = loader_of(replace(data, workers=workers), micro_batch_size=2)
    random_state = torch.get_rng_state()
    for first, last in ((0, 9), (5, 9), (8, 9), (9, 9)):
        steps = list(range(first, last))
        batches = list(loader.iterate(first, last))
        assert len(batches) == len(steps)
        for step, found in zip(steps, batches, strict=True):
            assert_same(found, inline.batches(step))
    assert torch.equal(random_state, torch.get_rng_state()), "the training's random numbers are not touched"


def test_iterating_without_workers_is_the_same_function(data: DataRecipe) -> None:
    loader = loader_of(data)
    for step, batches in enumerate(loader.iterate(2, 6), start=2):
        assert_same(batches, loader_of(data).batches(step))


def test_ranks_share_a_step_between_them(data: DataRecipe) -> None:
    for step in range(4):
        whole = rows(loader_of(data).batches(step))
        assert len(whole) == len(set(whole)) > 4
        for size in (2, 4):
            parts = [rows(loader_of(data, dp_rank=rank, dp_size=size).batches(step)) for rank in range(size)]
            assert sorted(row for part in parts for row in part) == sorted(whole)
            assert all(parts)


def test_continuing_on_another_number_of_ranks_reads_what_was_not_read(data: DataRecipe) -> None:
    packs = PackIndex.open(data.packs).packs
    steps = -(-packs // 4)
    seen = [row for step in range(2) for row in rows(loader_of(data).batches(step))]
    for step in range(2, steps):
        for rank in range(2):
            seen += rows(loader_of(data, dp_rank=rank, dp_size=2).batches(step))
    assert set(seen) == set(range(SAMPLES))
    uninterrupted = [row for step in range(steps) for row in rows(loader_of(data).batches(step))]
    assert sorted(seen) == sorted(uninterrupted)


def test_seed_changes_the_order(data: DataRecipe) -> None:
    assert rows(loader_of(data, seed=1).batches(0)) != rows(loader_of(data, seed=2).batches(0))


@pytest.fixture
def broken(tmp_path: Path) -> tuple[DataRecipe, str]:
    """A corpus in which the second image of one sample ends early; its header is whole."""
    records = [sample_record(i, images=2) for i in range(12)]
    image = records[5].images[1]
    cut = (records[5].images[0], image[: len(image) // 2])
    records[5] = replace(records[5], images=cut)
    return build(tmp_path, records), records[5].id


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_masks_its_sample_only(
    broken: tuple[DataRecipe, str], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data, name = broken
    loader = loader_of(replace(data, workers=workers), global_batch_size=2)
    index = loader.corpus.index
    bad = index.id[:].tolist().index(name.encode())
    epochs = 3
    with caplog.at_level(logging.WARNING):
        batches = [b for step in loader.iterate(0, -(-epochs * loader.packs.packs // 2)) for b in step]
    assert sum(batch.skipped for batch in batches) >= epochs
    for batch in batches:
        assert batch.skipped == batch.sample_ids.tolist().count(bad)
        first_patch = 0
        for s, row in enumerate(batch.sample_ids.tolist()):
            span = slice(int(batch.cu_seqlens[s]), int(batch.cu_seqlens[s + 1]))
            patches = batch.patches[first_patch : first_patch + int(index.patches[row])]
            first_patch += len(patches)
            assert len(patches) > 0
            assert (batch.loss_mask[span].sum() == 0) == (row == bad)
            assert (patches.abs().sum() == 0) == (row == bad)
    warnings = [entry.getMessage() for entry in caplog.records if entry.name == "onevision.data.loader"]
    shard = Path(data.corpus) / index.shards[index.shard[bad]]
    assert len(warnings) == 1, "warned once, however often the sample is met"
    assert warnings[0].startswith(f"{shard}: sample {name} is not learned from: image_undecodable")
    assert "\n" not in warnings[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_one_line_also_from_a_worker(tmp_path: Path, workers: int) -> None:
    data = build(tmp_path, [sample_record(i) for i in range(12)])
    loader = loader_of(replace(data, workers=workers))
    (shard,) = loader.corpus.index.shards
    path = Path(data.corpus) / shard
    os.truncate(path, 2000)
    with pytest.raises(DataError) as caught:
        list(loader.iterate(0, 5))
    assert str(caught.value).startswith(f"{path} at byte ") and "\n" not in str(caught.value)
    assert type(caught.value) is DataError and caught.value.exit_code == 3


def test_parts_that_do_not_belong_together_are_refused(data: DataRecipe) -> None:
    with pytest.raises(InputError) as caught:
        loader_of(replace(data, max_pixels=50_000))
    assert str(caught.value) == (
        f"{data.packs}/packs.h5 was made with max_pixels=60000, this run has 50000: run `make pack` again"
    )
    with pytest.raises(InputError, match="batch_size=6 is not a multiple of train.micro_batch_size=2 x 2"):
        loader_of(data, global_batch_size=6, micro_batch_size=2, dp_size=2)
    with pytest.raises(InputError, match="rank 2 is not one of 2"):
        loader_of(data, dp_rank=2, dp_size=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_that_is_left_early_reads_no_further(data: DataRecipe, workers: int) -> None:
    loader = loader_of(replace(data, workers=workers))
    batches = loader.iterate(0, 1_000_000)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader") and thread.is_alive()]
