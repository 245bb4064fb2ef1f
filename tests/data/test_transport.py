"""A batch that crosses to another process is the same batch, and its patches do not go through the pipe."""

from __future__ import annotations

import multiprocessing
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from onevision.data.batch import PackedBatch
from onevision.data.transport import Parcel


def batch_of(patches: int) -> PackedBatch:
    torch.manual_seed(patches)
    count = patches // 4
    return PackedBatch(
        tokens=torch.randint(0, 400, (64,)),
        labels=torch.randint(0, 400, (64,)),
        loss_mask=torch.rand(64),
        position_ids=torch.arange(64),
        cu_seqlens=torch.tensor([0, 30, 64], dtype=torch.int32),
        patches=torch.rand(patches, 588),
        grid_thw=torch.tensor([[1, 2, 2 * count]]) if count else torch.zeros(0, 3, dtype=torch.int64),
        image_slots=torch.arange(count),
        segment_category=torch.tensor([0, 1]),
        sample_ids=torch.tensor([7, 8]),
        sample_lengths=torch.tensor([30, 20]),
        real_tokens=50,
        skipped=1,
        notes=("a.tar: sample 7 is not learned from: image_undecodable: truncated",),
    )


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    for name, value in vars(one).items():
        found = getattr(other, name)
        if torch.is_tensor(value):
            assert value.dtype == found.dtype and torch.equal(value, found), name
        else:
            assert value == found, name


@pytest.mark.parametrize("patches", [0, 4, 4000])
def test_a_batch_arrives_as_it_was(patches: int) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    hold = context.Event()  # the sender lives until the receiver has the memory

    def send() -> None:
        queue.put([Parcel(batch_of(patches))])
        hold.wait(60)

    sender = context.Process(target=send)
    sender.start()
    (batch,) = queue.get(timeout=60)
    hold.set()
    sender.join(60)
    assert isinstance(batch, PackedBatch)
    assert_same(batch_of(patches), batch)  # also after the sender has ended
    batch.patches.add_(1)  # it is the receiver's own


def test_patches_do_not_go_through_the_pipe() -> None:
    sent = len(ForkingPickler.dumps(Parcel(batch_of(4000))))
    assert sent < 20_000 < 4000 * 588 * 4
