"""What a step does with the model, the optimizer and the schedule. The loop and the throughput benchmark share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from onevision.data.batch import PackedBatch
from onevision.data.loader import StepBatches
from onevision.model.graphs import LanguageGraphs, cuda_record
from onevision.model.onevision import OneVisionModel
from onevision.recipe import Recipe
from onevision.training.optimizer import build_optimizer, build_scheduler, data_parallel, gradient_ready
from onevision.training.step import forward_step
from onevision.training.update import apply_update, gradient_norm


def _unmarked(phase: str) -> None:
    """Nobody watches the phases."""


class Stepper:
    """The model behind data parallelism, its optimizer and schedule. A step is `compute`, `gradient_norm`, `update`,
    `advance`.

    `parts` is the model, or what this rank has of it: more than one with a virtual pipeline.
    `mark(phase)` is called where a phase of the step begins; see `onevision.training.timeline`.
    """

    def __init__(self, recipe: Recipe, parts: Sequence[OneVisionModel], categories: int) -> None:
        self.parts = list(parts)
        config = self.parts[0].config
        # The buckets of a later part would be sent before those of an earlier one: it has one bucket.
        self.ddp = [data_parallel(part, config, recipe, bucketing=not n) for n, part in enumerate(self.parts)]
        self.optimizer = build_optimizer(self.ddp, config, recipe)
        self.scheduler = build_scheduler(self.optimizer, recipe.optimizer, recipe.train.steps)
        self.graphs: LanguageGraphs | None = None
        if recipe.performance.cuda_graphs:  # the model is one part then
            decoder = self.parts[0].language.decoder
            record = cuda_record(next(decoder.parameters()).device)
            self.graphs = LanguageGraphs(decoder, record, gradient_ready(self.ddp[0]))
        self.mark: Callable[[str], None] = _unmarked
        self._run = get_forward_backward_func()
        self._categories = categories
        self._tokens = recipe.train.micro_batch_size * recipe.data.sequence_length

    @property
    def learning_rate(self) -> float:
        """That of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def compute(self, batches: StepBatches) -> list[dict[str, Tensor]]:
        """Forward and backward of the micro-batches, gradients reduced; what `count_loss` logs of each."""
        if self.graphs is not None:
            self.graphs.prepare()
        self.mark("zeroing gradients")
        for ddp in self.ddp:
            ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        virtual = len(self.ddp) > 1
        losses: list[dict[str, Tensor]] = self._run(
            forward_step_func=self._forward,
            data_iterator=[iter(batches) for _ in self.ddp] if virtual else iter(batches),
            model=self.ddp if virtual else self.ddp[0],
            num_microbatches=len(batches),
            seq_length=self._tokens,
            micro_batch_size=1,
            forward_only=False,
        )
        return losses

    def gradient_norm(self) -> float:
        """Norm of the gradients, before they are clipped and before any weight is changed."""
        self.mark("optimizer")
        return gradient_norm(self.optimizer)

    def update(self, norm: float) -> None:
        """Step of the optimizer with gradients of this norm. Without it the step leaves no trace in the weights."""
        apply_update(self.optimizer, norm)

    def advance(self) -> None:
        """One step of the schedule."""
        self.scheduler.step(1)

    def _forward(
        self, batches: Iterator[PackedBatch], model: torch.nn.Module
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
        total, count = forward_step(batches, model, categories=self._categories)

        def counted(total: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            result = count(total)
            self.mark("loss backward")
            return result

        return total, counted
