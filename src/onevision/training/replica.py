"""The ranks that share one copy of the model: one of them reads the batches, the others are sent what they need.

So shards are read and images decoded once for a copy of the model, however many ranks it has. Patches go to the ranks
of the first stage, which have the vision tower; the rest of a batch is small and goes to all of them. What is found
only when an image is decoded (a damaged sample is not learned from) is thus known on every stage.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from onevision.data.batch import MOVED, PackedBatch
from onevision.data.loader import PackLoader, StepBatches
from onevision.errors import OneVisionError
from onevision.recipe_training import ParallelRecipe


@dataclass(frozen=True)
class Replica:
    """This rank among those that share its copy of the model."""

    group: dist.ProcessGroup | None  # of gloo, all of them; None: there are no others
    first_stage: dist.ProcessGroup | None  # of those on the first stage; None: this one is not, or there are no others

    @property
    def reads(self) -> bool:
        """Whether this rank reads the batches; it is on the first stage."""
        return self.group is None or self.group.rank() == 0

    def share(self, loader: PackLoader, first_step: int, last_step: int) -> Generator[StepBatches, None, None]:
        """The batches of steps first_step to last_step - 1 (from 0), on every rank. `patches` [P, 588] are empty on
        ranks behind the first stage.

        Where ranks share a copy of the model, all batches of a step are there when it begins. The stages of a pipeline
        come to a batch at different times, and would wait for each other to send it; and a GPU would wait for its host.

        Raises:
            DataError: as `PackLoader.iterate`, on all ranks.
        """
        if self.group is None:
            yield from loader.iterate(first_step, last_step)
            return
        own = loader.iterate(first_step, last_step) if self.reads else None
        try:
            for _ in range(first_step, last_step):
                batches = self._step(own, loader)
                step = StepBatches(iter(batches), len(batches))
                step.hold()
                yield step
        finally:
            if own is not None:
                own.close()

    def _step(self, own: Iterator[StepBatches] | None, loader: PackLoader) -> list[PackedBatch]:
        assert self.group is not None
        batches: list[PackedBatch] = []
        message: list[Any] = [None]
        if own is not None:
            try:
                batches = list(next(own))
                message = [[_without_patches(batch) for batch in batches]]
            except OneVisionError as error:
                message = [error]
        dist.broadcast_object_list(message, group=self.group, group_src=0)
        if isinstance(message[0], OneVisionError):
            raise message[0]
        if own is None:
            batches = [batch.to(loader.device) for batch, _ in message[0]]
        if self.first_stage is None:
            return batches
        pairs = zip(batches, message[0], strict=True)
        return [replace(batch, patches=self._patches(batch.patches, *like)) for batch, (_, like) in pairs]

    def _patches(self, own: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        patches = own if self.reads else torch.empty(shape, dtype=dtype, device=own.device)
        if patches.numel():
            dist.broadcast(patches, group=self.first_stage, group_src=0)
        return patches


def join_replica(parallel: ParallelRecipe, patience_minutes: int = 30) -> Replica:
    """Form the group of the ranks that share a copy of the model; all ranks must call it. A rank that waits longer than
    `patience_minutes` for the one that reads gets torch's error."""
    if parallel.model_ranks == 1:
        return Replica(None, None)
    own = None
    for ranks in replica_ranks(parallel, dist.get_world_size()):
        group = dist.new_group(ranks, backend="gloo", timeout=timedelta(minutes=patience_minutes))
        if dist.get_rank() in ranks:
            own = group
    first = parallel_state.is_pipeline_first_stage()
    together = parallel_state.get_tensor_and_context_parallel_group()
    return Replica(own, together if first and together.size() > 1 else None)


def replica_ranks(parallel: ParallelRecipe, world_size: int) -> list[list[int]]:
    """The ranks of each copy of the model, those of the first stage first.

    Megatron numbers ranks with tensor running fastest, then context, then data, then pipeline.
    """
    inner = parallel.tensor * parallel.context
    copies = world_size // parallel.model_ranks
    places = list(product(range(parallel.pipeline), range(inner)))
    return [[(stage * copies + copy) * inner + rank for stage, rank in places] for copy in range(copies)]


def _without_patches(batch: PackedBatch) -> tuple[PackedBatch, tuple[torch.Size, torch.dtype]]:
    """The batch on the host without its patches, and their shape and dtype."""
    host = {name: getattr(batch, name).cpu() for name in MOVED if name != "patches"}
    nothing = torch.empty(0, batch.patches.shape[1], dtype=batch.patches.dtype)
    return replace(batch, **host, patches=nothing), (batch.patches.shape, batch.patches.dtype)
