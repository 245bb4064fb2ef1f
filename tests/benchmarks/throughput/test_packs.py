"""Synthetic packs: the published statistics, and batches that the model takes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.throughput.packs import STAGES, TEXT, synthetic_batch

VOCABULARY = 151_936


def test_packs_have_the_published_statistics() -> None:
    batches = [
        synthetic_batch(STAGES["stage1_5"], sequence_length=8192, packs=1, vocab_size=VOCABULARY, seed=seed)
        for seed in range(30)
    ]
    samples = sum(len(batch.sample_lengths) for batch in batches)
    tokens = sum(batch.real_tokens for batch in batches)
    assert samples / len(batches) == pytest.approx(9.4, rel=0.15)  # about nine samples a pack
    assert tokens / samples == pytest.approx(753, rel=0.15)
    assert sum(len(batch.image_slots) for batch in batches) / tokens == pytest.approx(0.75, rel=0.05)


def test_the_same_seed_gives_the_same_batch_and_another_another() -> None:
    one, again, other = (
        synthetic_batch(STAGES["stage2"], sequence_length=512, packs=2, vocab_size=1024, seed=seed)
        for seed in (5, 5, 6)
    )
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(one.tokens, other.tokens)


def test_text_packs_are_full_and_have_no_image() -> None:
    batch = synthetic_batch(TEXT, sequence_length=1024, packs=2, vocab_size=1024, seed=1)
    assert batch.real_tokens == 2048 and len(batch.image_slots) == 0 and len(batch.grid_thw) == 0
    # All but the first token of a sample are learned.
    assert int(batch.loss_mask.sum()) == 2048 - len(batch.sample_lengths)
