"""PackedBatch: the samples of one or more packs, laid end to end as tensors of a fixed length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from onevision.data.image import MERGE
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError

MOVED = ("tokens", "labels", "loss_mask", "position_ids", "patches")  # to the device; all else stays


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch of k packs: T = k * sequence_length tokens in S samples, I images of P patches together.

    A sample is a segment: it attends to nothing outside, and its positions begin at 0. The room that is left
    in a pack is filled with `<|endoftext|>`, as the end of its last segment, and never learned.

    `to` moves what the model computes with, value by value. What says how long things are stays in the host's memory
    for good: the model plans with it, and would otherwise wait for the device to hear it.
    """

    tokens: torch.Tensor  # int64 [T]
    labels: torch.Tensor  # int64 [T]: tokens[i + 1] where loss_mask[i] is 1, else 0
    loss_mask: torch.Tensor  # float32 [T]: 1 where tokens[i + 1] is a target of the same sample
    position_ids: torch.Tensor  # int64 [T]
    patches: torch.Tensor  # [P, 588]; float32, or of the dtype in which a device made them
    # These stay in the host's memory.
    image_slots: torch.Tensor  # int64 [P / 4]: places in tokens that the vision features take, in their order
    target_rows: torch.Tensor  # int64 [N]: where loss_mask is 1
    cu_seqlens: torch.Tensor  # int32 [S + 1]: segment s is cu_seqlens[s] to cu_seqlens[s + 1]
    grid_thw: torch.Tensor  # int64 [I, 3]
    segment_category: torch.Tensor  # int64 [S], into the categories of the run's sources
    sample_ids: torch.Tensor  # int64 [S], rows of the corpora of the run's sources, counted on from one to the next
    sample_lengths: torch.Tensor  # int64 [S], tokens of each sample, without the filling
    real_tokens: int  # their sum
    skipped: int  # samples that are damaged or whose images could not be decoded; they have no targets
    notes: tuple[str, ...]  # one line for each of them

    def to(self, device: torch.device) -> PackedBatch:
        """The batch with the fields of `MOVED` on `device`; from pinned memory the copies do not make the host wait."""
        ahead = device.type != "cpu"  # a copy to the host must be whole before anyone reads it
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=ahead) for name in MOVED})

    def without_content(self) -> PackedBatch:
        """What is told of a batch when it is gone: its samples, segments and images. What has a value a token or patch
        is empty."""
        names = (*MOVED, "image_slots", "target_rows")
        return replace(self, **{name: getattr(self, name)[:0].clone() for name in names})


@dataclass(frozen=True)
class Outline:
    """What is known of a sample before it is read, and decides where it lies in a batch."""

    sample_id: int
    category: int
    length: int  # L, tokens
    grids: tuple[tuple[int, int], ...]  # rows and columns of patches of each image

    @property
    def patches(self) -> int:
        """Patches of all its images."""
        return sum(rows * columns for rows, columns in self.grids)


@dataclass(frozen=True)
class Room:
    """Where a sample of L tokens is written: views into the batch, of content that is still unknown."""

    ids: NDArray[np.int64]  # [L]
    target: NDArray[np.bool_]  # [L], true on the tokens that are learned
    patches: slice  # its rows among the patches of the batch


class BatchLayout:
    """A batch that is being filled. The tokens of every sample are written straight into their place, `rooms[s]`; then
    `finish` makes the batch, of these and of the patches of all samples, one after the other.
    """

    def __init__(self, packs: Sequence[Sequence[Outline]], sequence_length: int, tokenizer: Tokenizer) -> None:
        self.samples = [sample for pack in packs for sample in pack]
        self._tokenizer = tokenizer
        total = len(packs) * sequence_length
        starts: list[int] = []
        self.rooms: list[Room] = []
        self._tokens = np.full(total, tokenizer.endoftext, np.int64)
        self._target = np.zeros(total + 1, bool)
        first = 0
        for number, pack in enumerate(packs):
            start = number * sequence_length
            for sample in pack:
                span, own = slice(start, start + sample.length), slice(first, first + sample.patches)
                self.rooms.append(Room(self._tokens[span], self._target[span], own))
                starts.append(start)
                start, first = span.stop, own.stop
        self._start = np.array(starts, np.int64)

    def finish(self, patches: torch.Tensor, skipped: Mapping[int, str] | None = None) -> PackedBatch:
        """The batch, once every room is filled.

        Args:
            patches: [P, 588] of all samples.
            skipped: a line for each sample that cannot be used, by its number in the batch. It is made to teach
                nothing: as many image tokens as it has patches for, then filling; patches of zeros, no target.

        Raises:
            DataError: image tokens and patches do not match.
        """
        skipped = skipped or {}
        for number in skipped:
            self._leave_blank(self.rooms[number], patches)
        tokens, start, samples = self._tokens, self._start, self.samples
        total = len(tokens)
        self._target[start] = False  # the first token of a sample follows another sample
        learned = self._target[1:]
        image_slots = np.flatnonzero(tokens == self._tokenizer.image_pad)
        if len(image_slots) * MERGE**2 != len(patches):
            ids = [sample.sample_id for sample in samples]
            raise DataError(f"samples {ids} have {len(image_slots)} image tokens for {len(patches)} patches")
        labels = np.zeros(total, np.int64)
        labels[:-1][learned[:-1]] = tokens[1:][learned[:-1]]
        cu_seqlens = np.append(start, total)
        lengths = np.array([sample.length for sample in samples], np.int64)
        grids = [(1, *grid) for sample in samples for grid in sample.grids]
        return PackedBatch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            loss_mask=torch.from_numpy(learned.astype(np.float32)),
            target_rows=torch.from_numpy(np.flatnonzero(learned)),
            position_ids=torch.from_numpy(np.arange(total) - np.repeat(start, np.diff(cu_seqlens))),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            patches=patches,
            grid_thw=torch.from_numpy(np.array(grids, np.int64).reshape(-1, 3)),
            image_slots=torch.from_numpy(image_slots),
            segment_category=torch.tensor([sample.category for sample in samples]),
            sample_ids=torch.tensor([sample.sample_id for sample in samples]),
            sample_lengths=torch.from_numpy(lengths),
            real_tokens=int(lengths.sum()),
            skipped=len(skipped),
            notes=tuple(skipped[number] for number in sorted(skipped)),
        )

    def _leave_blank(self, room: Room, patches: torch.Tensor) -> None:
        patches[room.patches] = 0
        image_tokens = (room.patches.stop - room.patches.start) // MERGE**2
        room.ids[:image_tokens] = self._tokenizer.image_pad
        room.ids[image_tokens:] = self._tokenizer.endoftext
        room.target[:] = False
