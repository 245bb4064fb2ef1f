"""Every way to spread a recipe over GPUs: tensor, pipeline and context parallelism, micro-batch, recompute.

With tensor parallelism goes sequence parallelism: it sends as much and keeps less.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onevision.model.layout import architecture_problems
from onevision.model.presets import PRESETS
from onevision.planning.hardware import GPUS_PER_NODE
from onevision.recipe import ParallelRecipe, Recipe, layout_problems

MICRO_BATCHES = (1, 2, 4)
RECOMPUTE = ("none", "selective", "full")
VIRTUAL = (1, 2, 4)


@dataclass(frozen=True)
class Layout:
    """Ranks that share every layer, the layers, and the tokens of a pack; parts of the model a stage; packs a forward
    pass; what is recomputed."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    virtual_pipeline: int = 1
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
            virtual = VIRTUAL if pipeline > 1 else (1,)
            for choice in itertools.product(virtual, MICRO_BATCHES, RECOMPUTE):
                yield Layout(tensor, pipeline, context, *choice)


def laid_out(recipe: Recipe, layout: Layout) -> Recipe:
    """The recipe with the layout's values. `parallel.split_vision` stays where it means something."""
    parallel = ParallelRecipe(
        tensor=layout.tensor,
        sequence=layout.tensor > 1,
        context=layout.context,
        pipeline=layout.pipeline,
        virtual_pipeline=layout.virtual_pipeline,
        split_vision=recipe.parallel.split_vision and layout.tensor > 1,
    )
    return replace(
        recipe,
        model=replace(recipe.model, recompute=layout.recompute),
        train=replace(recipe.train, micro_batch_size=layout.micro_batch),
        parallel=parallel,
    )


def refusal(recipe: Recipe, layout: Layout, gpus: int) -> str:
    """Why the layout cannot be, in a few words that many layouts share; empty if it can."""
    laid = laid_out(recipe, layout)
    if architecture_problems(laid, PRESETS[recipe.model.preset]):
        return "heads, groups, layers or the tokens of a pack are not divided"
    if layout_problems(laid, gpus):
        return "the global batch is not a multiple of micro-batch x data-parallel ranks (x stages, with VP)"
    return ""
