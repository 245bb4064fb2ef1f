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
from onevision.model.context import is_own, local_rows
from onevision.training.flops import Work


def forward_step(
    batches: Iterator[PackedBatch], model: torch.nn.Module, *, categories: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Loss of one micro-batch, and the function that Megatron's schedule calls to count it; of a stage before the last,
    the hidden states."""
    batch = next(batches)
    output = model(
        batch.tokens,
        batch.position_ids,
        batch.cu_seqlens,
        batch.patches,
        batch.grid_thw,
        batch.image_slots,
        labels=batch.labels,
        target_rows=batch.target_rows,
    )
    if isinstance(output, Tensor):
        return output, partial(count_loss, batch, categories, output)  # not called
    total, losses = output
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
    context = parallel_state.get_context_parallel_group()
    if context.size() > 1:
        rows = local_rows(len(segments), context.rank(), context.size())
        category = category[is_own(batch.target_rows, rows)]
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


def reduce_totals(
    losses: list[dict[str, Tensor]], batches: list[PackedBatch], signum: int, categories: int
) -> StepTotals:
    """Totals over all ranks; every rank learns of a stop that any rank was asked for. Of the batches only what their
    `without_content` has is looked at.

    A micro-batch is counted by one of the ranks that share it, its losses by those that have its targets.
    """
    by_category = torch.zeros(2, categories, dtype=torch.float64)
    if parallel_state.get_tensor_model_parallel_rank() == 0:  # the others have the same
        by_category = sum((entry["by_category"].cpu() for entry in losses), by_category)
    counted = batches if _reads() else []
    mine = (
        by_category.tolist(),
        sum(batch.skipped for batch in counted),
        [number for batch in counted for number in batch.sample_ids.tolist()],
        signum,
        [length for batch in counted for length in batch.sample_lengths.tolist()],
        [length for batch in counted for length in batch.cu_seqlens.diff().tolist()],
        [patches for batch in counted for patches in batch.grid_thw.prod(1).tolist()],
    )
    ranks: list[Any] = [mine]
    if dist.get_world_size() > 1:
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
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


def _reads() -> bool:
    return (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
    )
