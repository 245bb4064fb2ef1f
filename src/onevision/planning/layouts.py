"""Every way to spread a recipe over GPUs: tensor, pipeline and context parallelism, micro-batch, recompute."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onevision.model.layout import architecture_problems
from onevision.model.presets import PRESETS
from onevision.planning.hardware import GPUS_PER_NODE
from onevision.recipe import Recipe, layout_problems

MICRO_BATCHES = (1, 2, 4)
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Layout:
    """Ranks that share every layer, the layers, and the tokens of a pack; packs a forward pass; what is recomputed."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    micro_batch: int = 1
    recompute: str = "none"

    @property
    def model_ranks(self) -> int:
        """Ranks that share one copy of the model and its micro-batch."""
        return self.tensor * self.pipeline * self.context

    def data_ranks(self, gpus: int) -> int:
        """Groups of ranks that read packs of their own."""
        return gpus // self.model_ranks


def layouts(gpus: int) -> Iterator[Layout]:
    """All sizes worth a thought: tensor parallelism stays in a node, together they divide the GPUs."""
    sizes = [size for size in range(1, gpus + 1) if gpus % size == 0]
    inside = [size for size in sizes if size <= GPUS_PER_NODE]
    for tensor, pipeline, context in itertools.product(inside, sizes, inside):
        if gpus % (tensor * pipeline * context) == 0:
            for micro_batch, recompute in itertools.product(MICRO_BATCHES, RECOMPUTE):
                yield Layout(tensor, pipeline, context, micro_batch, recompute)


def laid_out(recipe: Recipe, layout: Layout) -> Recipe:
    """The recipe with the layout's values; context parallelism is no part of a recipe yet."""
    return replace(
        recipe,
        model=replace(recipe.model, recompute=layout.recompute),
        train=replace(recipe.train, micro_batch_size=layout.micro_batch),
        parallel=replace(recipe.parallel, tensor=layout.tensor, pipeline=layout.pipeline),
    )


def refusal(recipe: Recipe, layout: Layout, gpus: int) -> str:
    """Why the layout cannot be, in a few words that many layouts share; empty if it can."""
    laid = laid_out(recipe, layout)
    if architecture_problems(laid, PRESETS[recipe.model.preset]):
        return "heads, groups or layers are not divided"
    if recipe.data.sequence_length % (2 * layout.context * layout.tensor) and layout.context * layout.tensor > 1:
        return "the tokens of a pack are not divided"
    if layout_problems(laid, gpus // layout.context):
        return "the global batch is not a multiple of micro-batch x data-parallel ranks"
    return ""


def trainable(recipe: Recipe, layout: Layout) -> bool:
    """Whether this version trains it: tensor, pipeline and context parallelism are planned."""
    return not architecture_problems(laid_out(recipe, layout), PRESETS[recipe.model.preset])
