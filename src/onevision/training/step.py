"""What happens inside one step: the loss of a micro-batch, and the step's totals over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from onevision.data.batch import PackedBatch
from onevision.model.attention import to_device
from onevision.training.flops import Work


def forward_step(
    batches: Iterator[PackedBatch], model: torch.nn.Module, *, categories: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Loss of one micro-batch, and the function that Megatron's schedule calls to count it."""
    batch = next(batches)
    total, losses = model(
        batch.tokens,
        batch.position_ids,
        batch.cu_seqlens,
        batch.patches,
        batch.grid_thw,
        batch.image_slots,
        labels=batch.labels,
        target_rows=batch.target_rows,
    )
    return total, partial(count_loss, batch, categories, losses)


def count_loss(
    batch: PackedBatch, categories: int, losses: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the loss over the target tokens, their number, and both per category for the log.

    Megatron adds the sums of all micro-batches and ranks and divides the gradients by the number of all target tokens:
    the loss is a mean per token of the global batch, however the tokens are spread.
    """
    # On the host, where lengths are; and a product on the device, which adds up in the same order every time.
    segments = torch.repeat_interleave(batch.segment_category, batch.cu_seqlens.diff())
    category = segments.index_select(0, batch.target_rows)
    counts = torch.bincount(category, minlength=categories).double()
    of_category = to_device(category, losses.device) == torch.arange(categories, device=losses.device)[:, None]
    by_category = torch.stack([of_category.double() @ losses.double(), to_device(counts, losses.device)])
    targets = torch.full((), len(losses), dtype=torch.int, device=losses.device)
    return total, targets, {"by_category": by_category}


@dataclass(frozen=True)
class StepTotals:
    """Sums over all micro-batches and ranks of a step."""

    loss_sums: list[float]  # a category
    target_tokens: list[int]  # a category
    skipped: int
    sample_ids: list[int]  # of all samples that the ranks were given
    stop: int  # the signal that some rank was sent, or 0
    real: Work  # the samples
    slots: Work  # the samples with the filling of their packs

    @property
    def loss(self) -> float:
        """Mean loss of the target tokens."""
        return sum(self.loss_sums) / max(sum(self.target_tokens), 1)

    def by_category(self, names: Sequence[str]) -> dict[str, float]:
        """Mean loss of the categories that occurred."""
        rows = zip(names, self.loss_sums, self.target_tokens, strict=True)
        return {name: total / count for name, total, count in rows if count}


def reduce_totals(losses: list[dict[str, Tensor]], batches: list[PackedBatch], signum: int) -> StepTotals:
    """Totals over the data-parallel ranks; every rank learns of a stop that any rank was asked for."""
    by_category = torch.stack([entry["by_category"].double() for entry in losses]).sum(0)
    images = [patches for batch in batches for patches in batch.grid_thw.prod(1).tolist()]
    mine = (
        by_category.tolist(),
        sum(batch.skipped for batch in batches),
        [number for batch in batches for number in batch.sample_ids.tolist()],
        signum,
        [length for batch in batches for length in batch.sample_lengths.tolist()],
        [length for batch in batches for length in batch.cu_seqlens.diff().tolist()],
        images,
    )
    group = parallel_state.get_data_parallel_group()
    ranks: list[Any] = [mine]
    if group.size() > 1:
        ranks = [None] * group.size()
        dist.all_gather_object(ranks, mine, group=group)
    sums, skipped, ids, signums, real, slots, patches = zip(*ranks, strict=True)
    all_images = [entry for rank in patches for entry in rank]
    targets = [int(sum(values)) for values in zip(*(rank[1] for rank in sums), strict=True)]
    return StepTotals(
        loss_sums=[sum(values) for values in zip(*(rank[0] for rank in sums), strict=True)],
        target_tokens=targets,
        skipped=sum(skipped),
        sample_ids=[number for rank in ids for number in rank],
        stop=max(signums),
        real=Work([entry for rank in real for entry in rank], all_images, sum(targets)),
        slots=Work([entry for rank in slots for entry in rank], all_images, sum(targets)),
    )
