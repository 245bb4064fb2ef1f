"""Ragged samples into packs: what `onevision.data.batch.BatchLayout` makes of them, where they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from onevision.errors import DataError


class Assembled(NamedTuple):
    """T = k * sequence_length places of k packs; the fields of `onevision.data.batch.PackedBatch`."""

    tokens: Tensor  # int64 [T]
    labels: Tensor  # int64 [T]
    loss_mask: Tensor  # float32 [T]
    position_ids: Tensor  # int64 [T]
    cu_seqlens: Tensor  # int32 [S + 1]
    image_slots: Tensor  # int64 [N]; -1 at its end where there are fewer image tokens
    image_count: Tensor  # int64 [1]: how many there are; it must be N


def assemble(
    ids: Tensor,
    target: Tensor,
    sample_offsets: Tensor,
    pack_offsets: Tensor,
    sequence_length: int,
    endoftext: int,
    image_pad: int,
    image_tokens: int,
) -> Assembled:
    """Lay S samples out in k packs.

    Args:
        ids: int64 [R], the tokens of all samples, end to end.
        target: bool [R], true on those that are learned.
        sample_offsets: int64 [S + 1] on the CPU: sample s is ids[sample_offsets[s] : sample_offsets[s + 1]].
        pack_offsets: int64 [k + 1] on the CPU: pack p has the samples pack_offsets[p] to pack_offsets[p + 1].
        sequence_length: places of a pack; those behind its last sample hold endoftext.
        image_pad: the token whose places are the image slots.
        image_tokens: N, a quarter of the batch's patches. That the samples have as many is not checked here, which
            would wait for the device: `image_count` tells.

    Raises:
        DataError: offsets that do not fit one another, or a pack without a sample, or one that is too long.
    """
    _check(len(ids), sample_offsets, pack_offsets, sequence_length)
    offsets = (x.to(ids.device, non_blocking=True) for x in (sample_offsets, pack_offsets))
    return Assembled(
        *torch.ops.onevision.assemble(ids, target, *offsets, sequence_length, endoftext, image_pad, image_tokens)
    )


def _check(count: int, samples: Tensor, packs: Tensor, sequence_length: int) -> None:
    for name, offsets, last in (("sample", samples, count), ("pack", packs, len(samples) - 1)):
        if offsets.tolist()[:1] != [0] or int(offsets[-1]) != last or bool((offsets.diff() < 0).any()):
            raise DataError(f"{name}_offsets must ascend from 0 to {last}")
    lengths = samples[packs].diff()
    for wrong, what in ((packs.diff() == 0, "no sample"), (lengths > sequence_length, "too many tokens")):
        if bool(wrong.any()):
            pack = int(wrong.nonzero()[0])
            raise DataError(f"pack {pack} has {what}: {int(lengths[pack])} tokens for {sequence_length} places")


def register(namespace: str) -> None:
    """Shapes of the op in a namespace."""

    def shapes(
        ids: Tensor,
        target: Tensor,
        sample_offsets: Tensor,
        pack_offsets: Tensor,
        sequence_length: int,
        filling: int,
        image_pad: int,
        image_tokens: int,
    ) -> tuple[Any, ...]:
        total = (pack_offsets.shape[0] - 1) * sequence_length
        tokens, labels, position_ids = (ids.new_empty(total) for _ in range(3))
        loss_mask = ids.new_empty(total, dtype=torch.float32)
        cu_seqlens = ids.new_empty(sample_offsets.shape[0], dtype=torch.int32)
        return tokens, labels, loss_mask, position_ids, cu_seqlens, ids.new_empty(image_tokens), ids.new_empty(1)

    torch.library.register_fake(f"{namespace}::assemble", shapes)
