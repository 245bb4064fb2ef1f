"""The loader on a small real corpus: a pure function of the step, with workers and without."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
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
from onevision.data.staging import Staged
from onevision.data.template import encode
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError
from onevision.packing.build import build_packs
from onevision.packing.index import PackIndex
from onevision.recipe_data import DataRecipe, MixtureEntry
from onevision.training.inputs import open_sources
from tests.fixtures import sample_record, tiny_tokenizer, write_records

SAMPLES = 70
T = 512


def build(root: Path, records: list[Record], shard_samples: int = 25) -> DataRecipe:
    """A corpus and packs of these records below `root`."""
    tiny_tokenizer(root / "tokenizer")
    write_records(root / "records", records)
    data = DataRecipe(
        source=str(root / "records"), corpus=str(root / "corpus"), packs=str(root / "packs"),
        tokenizer=str(root / "tokenizer"), sequence_length=T, shard_samples=shard_samples, workers=0, max_pixels=60_000,
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
    return PackLoader(open_sources(data), load_tokenizer(data.tokenizer), data, **options)


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
    (source,) = loader.sources.sources
    packs, index = source.packs, source.corpus.index
    seen = []
    for step in range(packs.packs):
        (batch,) = loader.batches(step)
        lengths = batch.cu_seqlens.diff()
        assert torch.equal(lengths[:-1].long(), batch.sample_lengths[:-1])  # the last also holds the filling
        (pack,) = loader.mixture.at(step, 1)[1].tolist()
        assert batch.sample_ids.tolist() == packs.samples_of(pack)
        assert batch.real_tokens == packs.tokens[pack]
        assert len(batch.patches) == packs.patches[pack]
        assert (batch.sample_lengths**2).sum() == packs.attention_cost[pack]
        for s, row in enumerate(batch.sample_ids.tolist()):
            record = source.corpus.record(row)
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
                for image in loader.sources.sources[0].corpus.record(row).images
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
        batches = [list(step) for step in loader.iterate(first, last)]
        assert len(batches) == len(steps)
        for step, found in zip(steps, batches, strict=True):
            assert_same(found, inline.batches(step))
    assert torch.equal(random_state, torch.get_rng_state()), "the training's random numbers are not touched"


def test_iterating_without_workers_is_the_same_function(data: DataRecipe) -> None:
    loader = loader_of(data)
    for step, batches in enumerate(loader.iterate(2, 6), start=2):
        assert_same(list(batches), loader_of(data).batches(step))


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
    (source,) = loader.sources.sources
    index = source.corpus.index
    bad = index.id[:].tolist().index(name.encode())
    epochs = 3
    with caplog.at_level(logging.WARNING):
        batches = [b for step in loader.iterate(0, -(-epochs * source.packs.packs // 2)) for b in step]
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


def damage(data: DataRecipe, row: int, member: str) -> str:
    """Flip a bit of a sample's JSON or last image; returns the shard's path."""
    corpus = CorpusReader(data.corpus)
    (entry,) = corpus.entries([row])
    offset, size = entry.text if member == "json" else entry.images[-1]
    path = Path(data.corpus) / entry.shard
    with path.open("r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)
        file.seek(offset + size // 2)
        file.write(bytes([byte[0] ^ 1]))
    return str(path)


@pytest.mark.parametrize("member", ["json", "image"])
def test_a_sample_whose_bytes_were_changed_is_blank_and_the_others_are_what_they_were(
    tmp_path: Path, member: str
) -> None:
    data = build(tmp_path, [sample_record(i, images=1 + i % 2) for i in range(12)])
    whole = loader_of(data).batches(0) + loader_of(data).batches(1)
    bad = rows(whole)[1]
    shard = damage(data, bad, member)
    loader = loader_of(data)
    found = loader.batches(0) + loader.batches(1)
    for before, after in zip(whole, found, strict=True):
        hit = bad in before.sample_ids.tolist()
        assert after.skipped == before.sample_ids.tolist().count(bad)
        assert torch.equal(after.cu_seqlens, before.cu_seqlens) and torch.equal(after.grid_thw, before.grid_thw)
        assert after.patches.shape == before.patches.shape
        if not hit:
            assert_same([after], [before])
            continue
        own = torch.zeros(len(before.tokens), dtype=torch.bool)
        for s in np.flatnonzero(before.sample_ids.numpy() == bad):
            own[int(before.cu_seqlens[s]) : int(before.cu_seqlens[s + 1])] = True
        assert before.loss_mask[own].sum() > 0 == after.loss_mask[own].sum()
        for name in ("tokens", "labels", "loss_mask"):
            assert torch.equal(getattr(after, name)[~own], getattr(before, name)[~own]), name
        name = loader.sources.sample_name(bad)
        assert after.notes[0].startswith(f"{shard}: sample {name} is not learned from: at byte ")


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_samples_end_the_training_with_one_line(tmp_path: Path, workers: int) -> None:
    data = build(tmp_path, [sample_record(i) for i in range(24)])
    loader = loader_of(replace(data, workers=workers))
    (source,) = loader.sources.sources
    path = Path(data.corpus) / source.corpus.index.shards[0]
    os.truncate(path, 2000)
    with pytest.raises(DataError) as caught:
        list(loader.iterate(0, 20))
    line = str(caught.value)
    count, last = int(line.split()[0]), int(line.split()[4])
    assert 10 < count <= last and "\n" not in line
    assert f"samples could not be used, more than data.reject_threshold=0.01 and 10; the last: {path}: sample" in line
    assert type(caught.value) is DataError and caught.value.exit_code == 3


def test_the_same_share_is_borne_by_a_recipe_that_allows_it(tmp_path: Path) -> None:
    data = build(tmp_path, [sample_record(i) for i in range(24)])
    damaged = [damage(data, row, "json") for row in range(12)]
    loader = loader_of(replace(data, reject_threshold=0.9))
    batches = [batch for step in loader.iterate(0, 20) for batch in step]
    assert len(damaged) == 12 < sum(batch.skipped for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_ends_the_training_at_once(tmp_path: Path, workers: int) -> None:
    data = build(tmp_path, [sample_record(i) for i in range(12)])
    loader = loader_of(replace(data, workers=workers))
    path = Path(data.corpus) / loader.sources.sources[0].corpus.index.shards[0]
    path.unlink()
    with pytest.raises(DataError) as caught:
        next(loader.iterate(0, 5))
    assert str(caught.value).startswith(f"{path} at byte ")
    assert str(caught.value).endswith("cannot be read: No such file or directory")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    """Two corpora whose records have other ids, counts and categories, of which one name is the same."""
    root = tmp_path_factory.mktemp("mixed")
    first = [replace(sample_record(i, images=i % 3), category=("chart", "text")[i % 2]) for i in range(20)]
    second = [replace(sample_record(i), id=f"b-{i}", category=("photo", "text")[i % 2]) for i in range(45)]
    one, other = build(root / "one", first), build(root / "other", second)
    mixture = [MixtureEntry(one.corpus, one.packs, weight=3), MixtureEntry(other.corpus, other.packs, weight=1)]
    return replace(one, corpus="", packs="", mixture=mixture)


def test_a_mixture_is_read_as_one(mixed: DataRecipe) -> None:
    loader = loader_of(mixed, global_batch_size=2)
    sources = loader.sources
    assert sources.categories == ("chart", "text", "photo")
    seen: Counter[int] = Counter()
    steps = 96
    for step in range(steps):
        for batch in loader.batches(step):
            for sample_id, category in zip(batch.sample_ids.tolist(), batch.segment_category.tolist(), strict=True):
                number, row = (0, sample_id) if sample_id < 20 else (1, sample_id - 20)
                record = sources.sources[number].corpus.record(row)
                assert sources.categories[category] == record.category
                assert sources.sample_name(sample_id) == f"{mixed.mixture[number].corpus}: {record.id}"
                seen[sample_id] += 1
    assert sorted(seen) == list(range(65))
    for number, (epochs, own) in enumerate(zip(loader.epochs(steps).values(), (range(20), range(20, 65)), strict=True)):
        counts = [seen[sample_id] for sample_id in own]
        assert min(counts) == int(epochs) and max(counts) <= int(epochs) + 1, number
        packs = epochs * sources.sources[number].packs.packs
        assert abs(packs - steps * 2 * (0.75, 0.25)[number]) <= (0.75, 0.25)[number] * 132 + 1


def test_a_mixture_continues_on_another_number_of_ranks(mixed: DataRecipe) -> None:
    def read(steps: range, size: int) -> list[int]:
        ranks = [loader_of(mixed, dp_rank=rank, dp_size=size) for rank in range(size)]
        return [row for step in steps for rank in ranks for row in rows(rank.batches(step))]

    assert sorted(read(range(5), 1) + read(range(5, 12), 2)) == sorted(read(range(12), 4))


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
    assert not loader_threads()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader") and thread.is_alive()]


def test_an_error_comes_in_its_turn_and_leaves_no_thread(tmp_path: Path) -> None:
    """Steps before the one that fails are delivered, though the threads met the error while the first was in use."""
    data = build(tmp_path, [sample_record(i) for i in range(60)], shard_samples=1)
    data = replace(data, workers=3, prefetch_packs=64)
    loader = loader_of(data, global_batch_size=1)
    (source,) = loader.sources.sources
    (row, *_) = source.packs.samples_of(int(loader.mixture.at(3, 1)[1][0]))
    (Path(data.corpus) / source.corpus.index.shards[source.corpus.index.shard[row]]).unlink()
    steps = loader.iterate(0, 8)
    for _ in range(3):
        assert len(next(steps)) == 1
    with pytest.raises(DataError, match="cannot be read"):
        next(steps)
    assert not loader_threads()


def test_an_interrupt_leaves_no_thread(data: DataRecipe) -> None:
    steps = loader_of(replace(data, workers=2)).iterate(0, 1_000_000)
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert not loader_threads()


def test_what_is_decoded_ahead_is_bounded(data: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(replace(data, workers=2, prefetch_packs=6), global_batch_size=4)
    asked: list[list[tuple[int, int]]] = []
    make = loader._staged

    def noted(packs: list[tuple[int, int]]) -> Staged:
        asked.append(packs)
        return make(packs)

    monkeypatch.setattr(loader, "_staged", noted)
    taken = 0
    for step in loader.iterate(0, 9):
        for _ in step:
            taken += 1
            assert len(asked) <= min(taken + 6, 36), "the one in use and six ahead, however many a step has"
    assert asked and len(asked) == taken == 36


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_gone_when_it_is_let_go_of(data: DataRecipe, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    loader = loader_of(replace(data, workers=workers, prefetch_packs=3), global_batch_size=16)
    make, most = loader._batch, 0
    made: list[weakref.ref[torch.Tensor]] = []

    def noted(packs: list[tuple[int, int]]) -> PackedBatch:
        batch = make(packs)
        made.append(weakref.ref(batch.patches))
        return batch

    monkeypatch.setattr(loader, "_batch", noted)
    for step in loader.iterate(0, 2):
        for number, batch in enumerate(step, start=1):
            most = max(most, sum(patches() is not None for patches in made))
            assert len(step.facts) == number and step.facts[-1].sample_ids.tolist() == batch.sample_ids.tolist()
            del batch
        assert len(step) == number == 16
    assert len(made) == 32 and most <= 1 + (3 if workers else 0)


def test_what_was_not_taken_is_passed_over_and_what_is_held_stays(data: DataRecipe) -> None:
    loader, inline = loader_of(data, global_batch_size=3), loader_of(data, global_batch_size=3)
    for number, step in enumerate(loader.iterate(0, 4)):
        expected = inline.batches(number)
        if number == 1:
            step.hold()
            ways = [iter(step), iter(step)]  # the parts of a virtual pipeline
            assert_same([next(ways[k]) for k in (0, 0, 1, 1, 0, 1)], [expected[k] for k in (0, 1, 0, 1, 2, 2)])
            assert_same(list(step), expected)
        else:
            assert_same([next(iter(step))], expected[:1])
        assert [facts.sample_ids.tolist() for facts in step.facts] == [
            batch.sample_ids.tolist() for batch in expected[: len(step.facts)]
        ]
