"""What a process sends over a channel arrives whole and in order, also after the sender has died."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from onevision.data.batch import PackedBatch
from onevision.data.transport import receive, send
from onevision.errors import DataError


@dataclass(frozen=True)
class Channel:
    """Both ends."""

    ours: socket.socket
    theirs: socket.socket


@pytest.fixture
def channel() -> Iterator[Channel]:
    """A channel between two processes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours, theirs)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


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


def test_what_a_process_sent_before_it_was_killed_arrives_in_order(channel: Channel) -> None:
    sizes = [4000, 0, 4]

    def work() -> None:
        for size in sizes:
            send([batch_of(size)], channel.theirs)
        os.kill(os.getpid(), signal.SIGKILL)

    sender = multiprocessing.get_context("fork").Process(target=work)
    sender.start()
    sender.join(60)
    assert sender.exitcode == -signal.SIGKILL
    open_before = open_files()
    for size in sizes:
        (batch,) = receive(channel.ours)
        for name, value in vars(batch_of(size)).items():
            found = getattr(batch, name)
            if torch.is_tensor(value):
                assert value.dtype == found.dtype and torch.equal(value, found), name
            else:
                assert value == found, name
        batch.patches.add_(1)  # the receiver may write to its batch
    assert open_files() == open_before


def test_errors_travel_too(channel: Channel) -> None:
    send(DataError("shard.tar at byte 9: gone"), channel.theirs)
    error = receive(channel.ours)
    assert type(error) is DataError and str(error) == "shard.tar at byte 9: gone"


def test_the_channel_itself_carries_next_to_nothing(channel: Channel) -> None:
    channel.theirs.setblocking(False)  # so that a full buffer would fail, not wait
    for _ in range(20):
        send(np.zeros(1_000_000), channel.theirs)
    assert sum(len(receive(channel.ours)) for _ in range(20)) == 20_000_000
