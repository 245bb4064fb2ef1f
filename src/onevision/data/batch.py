"""PackedBatch: the samples of one or more packs, laid end to end as tensors of a fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from onevision.data.image import MERGE
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One encoded sample of L tokens with its images, ready to be packed."""

    row: int  # of the corpus
    category: int  # into the corpus' categories
    ids: NDArray[np.int64]  # [L]
    target: NDArray[np.bool_]  # [L], true on the tokens that are learned
    patches: NDArray[np.float32]  # [p, 588], of all its images; p may be 0
    grid_thw: NDArray[np.int64]  # [i, 3], patches of each image along time, height and width
    skipped: str = ""  # why it is not learned from; then no target is true and the patches are zero


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch of k packs: T = k * sequence_length tokens in S samples, I images of P patches together.

    A sample is a segment: it attends to nothing outside, and its positions begin at 0. The room that is left
    in a pack is filled with `<|endoftext|>`, as the end of its last segment, and never learned.
    """

    tokens: torch.Tensor  # int64 [T]
    labels: torch.Tensor  # int64 [T]: tokens[i + 1] where loss_mask[i] is 1, else 0
    loss_mask: torch.Tensor  # float32 [T]: 1 where tokens[i + 1] is a target of the same sample
    position_ids: torch.Tensor  # int64 [T]
    cu_seqlens: torch.Tensor  # int32 [S + 1]: segment s is cu_seqlens[s] to cu_seqlens[s + 1]
    patches: torch.Tensor  # float32 [P, 588]
    grid_thw: torch.Tensor  # int64 [I, 3]
    image_slots: torch.Tensor  # int64 [P / 4]: places in tokens that the vision features take, in their order
    segment_category: torch.Tensor  # int64 [S], into the corpus' categories
    sample_ids: torch.Tensor  # int64 [S], rows of the corpus
    sample_lengths: torch.Tensor  # int64 [S], tokens of each sample, without the filling
    real_tokens: int  # their sum
    skipped: int  # samples whose images could not be decoded; they have no targets
    notes: tuple[str, ...]  # one line for each of them

    def to(self, device: torch.device) -> PackedBatch:
        """The batch with its tensors on `device`."""
        values = vars(self).items()
        moved = {name: value.to(device) for name, value in values if isinstance(value, torch.Tensor)}
        return replace(self, **moved)


def assemble(packs: Sequence[Sequence[Sample]], sequence_length: int, tokenizer: Tokenizer) -> PackedBatch:
    """Lay the samples of each pack end to end, and the packs after one another.

    Raises:
        DataError: a sample's image tokens and patches do not match.
    """
    samples = [sample for pack in packs for sample in pack]
    total = len(packs) * sequence_length
    lengths = np.array([len(sample.ids) for sample in samples])
    sizes = np.array([len(pack) for pack in packs])  # samples a pack
    first = np.cumsum(sizes) - sizes  # of each pack, in `samples`
    in_row = np.cumsum(lengths) - lengths  # where samples would start if packs had no filling
    pack_of = np.repeat(np.arange(len(packs)), sizes)
    start = pack_of * sequence_length + in_row - in_row[first][pack_of]
    cu_seqlens = np.append(start, total)
    place = np.arange(lengths.sum()) + np.repeat(start - in_row, lengths)  # of every real token

    tokens = np.full(total, tokenizer.endoftext, np.int64)
    tokens[place] = np.concatenate([sample.ids for sample in samples])
    target = np.zeros(total + 1, bool)
    target[place] = np.concatenate([sample.target for sample in samples])
    target[start] = False  # the first token of a sample follows another sample
    learned = target[1:]

    image_slots = np.flatnonzero(tokens == tokenizer.image_pad)
    patches = np.concatenate([sample.patches for sample in samples])
    if len(image_slots) * MERGE**2 != len(patches):
        rows = [sample.row for sample in samples]
        raise DataError(f"corpus rows {rows} have {len(image_slots)} image tokens for {len(patches)} patches")
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(np.where(learned, np.append(tokens[1:], 0), 0)),
        loss_mask=torch.from_numpy(learned.astype(np.float32)),
        position_ids=torch.from_numpy(np.arange(total) - np.repeat(start, np.diff(cu_seqlens))),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        patches=torch.from_numpy(patches),
        grid_thw=torch.from_numpy(np.concatenate([sample.grid_thw for sample in samples])),
        image_slots=torch.from_numpy(image_slots),
        segment_category=torch.tensor([sample.category for sample in samples]),
        sample_ids=torch.tensor([sample.row for sample in samples]),
        sample_lengths=torch.from_numpy(lengths),
        real_tokens=int(lengths.sum()),
        skipped=sum(bool(sample.skipped) for sample in samples),
        notes=tuple(sample.skipped for sample in samples if sample.skipped),
    )
