"""PackedBatch against a token-by-token reading of the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onevision.data.batch import BatchLayout, Outline, PackedBatch
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError
from tests.fixtures import tiny_tokenizer

T = 48


@dataclass(frozen=True)
class Sample:
    """An encoded sample with random patches."""

    row: int
    category: int
    ids: np.ndarray
    target: np.ndarray
    patches: np.ndarray
    grids: tuple[tuple[int, int], ...]


def assemble(packs: list[list[Sample]], sequence_length: int, tokenizer: Tokenizer) -> PackedBatch:
    """The batch into whose rooms these samples were written."""
    outlines = [[Outline(s.row, s.category, len(s.ids), s.grids) for s in pack] for pack in packs]
    layout = BatchLayout(outlines, sequence_length, tokenizer)
    samples = [sample for pack in packs for sample in pack]
    patches = torch.from_numpy(np.concatenate([sample.patches for sample in samples]))
    for sample, room in zip(samples, layout.rooms, strict=True):
        room.ids[:], room.target[:] = sample.ids, sample.target
        assert np.array_equal(patches[room.patches].numpy(), sample.patches)
    return layout.finish(patches)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer."""
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_sample(tokenizer: Tokenizer, row: int, length: int, images: int, rng: np.random.Generator) -> Sample:
    """A sample of random text ids, random targets, and `images` images of one token (2 x 2 patches) each."""
    ids = rng.integers(10, tokenizer.vocab_size, length)
    places = rng.choice(length, images, replace=False)
    ids[places] = tokenizer.image_pad
    target = rng.random(length) < 0.5
    target[places] = False
    patches = rng.random((4 * images, 588), np.float32)
    return Sample(row, row % 3, ids, target, patches, ((2, 2),) * images)


def make_packs(tokenizer: Tokenizer, lengths: list[list[int]], seed: int = 0) -> list[list[Sample]]:
    rng = np.random.default_rng(seed)
    rows = iter(range(1000, 2000))
    return [[make_sample(tokenizer, next(rows), n, min(n, n % 3), rng) for n in pack] for pack in lengths]


def check(batch: PackedBatch, packs: list[list[Sample]], tokenizer: Tokenizer) -> None:
    """Walk over the batch token by token and compare it with the samples."""
    samples = [sample for pack in packs for sample in pack]
    total = T * len(packs)
    cu = batch.cu_seqlens.tolist()
    assert cu[0] == 0 and cu[-1] == total and all(a < b for a, b in zip(cu, cu[1:], strict=False))
    assert len(cu) == len(samples) + 1
    assert set(range(0, total, T)) <= set(cu), "no segment reaches over the end of a pack"
    for s, sample in enumerate(samples):
        start, end = cu[s], cu[s + 1]
        n = len(sample.ids)
        assert batch.tokens[start:end].tolist() == [*sample.ids, *[tokenizer.endoftext] * (end - start - n)]
        assert end - start == n or end % T == 0, "only the last segment of a pack holds filling"
        assert batch.position_ids[start:end].tolist() == list(range(end - start))
        for i in range(start, end):
            learned = i + 1 - start < n and bool(sample.target[i + 1 - start])
            assert batch.loss_mask[i] == learned
            assert batch.labels[i] == (batch.tokens[i + 1] if learned else 0)
    assert batch.image_slots.tolist() == [i for i in range(total) if batch.tokens[i] == tokenizer.image_pad]
    assert len(batch.image_slots) * 4 == len(batch.patches) == batch.grid_thw.prod(1).sum()
    assert np.array_equal(batch.patches.numpy(), np.concatenate([sample.patches for sample in samples]))
    assert batch.segment_category.tolist() == [sample.category for sample in samples]
    assert batch.sample_ids.tolist() == [sample.row for sample in samples]
    assert batch.sample_lengths.tolist() == [len(sample.ids) for sample in samples]
    assert batch.real_tokens == sum(len(sample.ids) for sample in samples)


@given(
    packs=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_token_is_where_it_belongs(tokenizer: Tokenizer, packs: list[list[int]], seed: int) -> None:
    made = make_packs(tokenizer, packs, seed)
    check(assemble(made, T, tokenizer), made, tokenizer)


def test_full_packs_have_no_filling_and_learn_nothing_across_their_border(tokenizer: Tokenizer) -> None:
    packs = make_packs(tokenizer, [[20, 28], [48], [47]])
    for pack in packs:
        for sample in pack:
            sample.target[:] = True  # also the first token, which follows another sample
    batch = assemble(packs, T, tokenizer)
    check(batch, packs, tokenizer)
    assert batch.loss_mask.sum() == batch.real_tokens - 4
    assert (batch.tokens == tokenizer.endoftext).sum() == 1


def test_dtypes_and_shapes(tokenizer: Tokenizer) -> None:
    batch = assemble(make_packs(tokenizer, [[5, 8], [11]]), T, tokenizer)
    tensors = {name: value for name, value in vars(batch).items() if torch.is_tensor(value)}
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    images = len(batch.grid_thw)
    assert images > 0
    assert kinds == {
        "tokens": (torch.int64, (2 * T,)),
        "labels": (torch.int64, (2 * T,)),
        "loss_mask": (torch.float32, (2 * T,)),
        "target_rows": (torch.int64, (int(batch.loss_mask.sum()),)),
        "position_ids": (torch.int64, (2 * T,)),
        "cu_seqlens": (torch.int32, (4,)),
        "patches": (torch.float32, (4 * images, 588)),
        "grid_thw": (torch.int64, (images, 3)),
        "image_slots": (torch.int64, (images,)),
        "segment_category": (torch.int64, (3,)),
        "sample_ids": (torch.int64, (3,)),
        "sample_lengths": (torch.int64, (3,)),
    }
    assert (batch.skipped, batch.notes) == (0, ())


def test_text_only(tokenizer: Tokenizer) -> None:
    packs = make_packs(tokenizer, [[3, 6]])
    batch = assemble(packs, T, tokenizer)
    check(batch, packs, tokenizer)
    assert batch.patches.shape == (0, 588) and batch.grid_thw.shape == (0, 3)


def test_image_tokens_without_patches_are_refused(tokenizer: Tokenizer) -> None:
    packs = make_packs(tokenizer, [[4, 5]])
    packs[0][0].ids[0] = tokenizer.image_pad
    packs[0][0].ids[1:] = 20
    packs[0][1].ids[:] = tokenizer.image_pad
    with pytest.raises(DataError, match=r"samples \[1000, 1001\] have 6 image tokens for 12 patches"):
        assemble(packs, T, tokenizer)


def test_to_moves_what_is_computed_with_and_leaves_lengths_on_the_host(tokenizer: Tokenizer) -> None:
    batch = assemble(make_packs(tokenizer, [[4, 5]]), T, tokenizer)
    moved = batch.to(torch.device("meta"))
    gone = {name for name, value in vars(moved).items() if torch.is_tensor(value) and value.device.type == "meta"}
    assert gone == {"tokens", "labels", "loss_mask", "position_ids", "patches"}
    assert all(value is getattr(batch, name) for name, value in vars(moved).items() if name not in gone)


def test_a_sample_that_is_left_blank_keeps_its_place_and_is_not_learned_from(tokenizer: Tokenizer) -> None:
    outlines = [Outline(7, 1, 9, ((2, 2), (2, 4))), Outline(8, 0, 4, ())]
    layout = BatchLayout([outlines], T, tokenizer)
    for room in layout.rooms:
        room.target[:] = True
    batch = layout.finish(torch.full((12, 588), torch.nan), {1: "the second", 0: "the first"})
    assert batch.tokens.tolist() == [tokenizer.image_pad] * 3 + [tokenizer.endoftext] * (T - 3)
    assert batch.image_slots.tolist() == [0, 1, 2] and torch.equal(batch.patches, torch.zeros(12, 588))
    assert batch.loss_mask.sum() == 0 and batch.labels.sum() == 0
    assert batch.cu_seqlens.tolist() == [0, 9, T] and batch.sample_lengths.tolist() == [9, 4]
    assert (batch.skipped, batch.notes) == (2, ("the first", "the second"))
