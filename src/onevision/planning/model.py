"""Time of a step and memory of a GPU, predicted for one layout. Every time is an amount of work over a rate.

A step of M micro-batches on P pipeline stages takes M times the slowest stage's micro-batch, once every other stage's
(the bubble of the 1F1B schedule, in which the pipeline fills and drains; with V parts a stage 1/V of it, and V times
the messages between stages), then the data-parallel communication that is not hidden, and the optimizer.
Tensor parallelism comes with sequence parallelism: an all-gather or reduce-scatter of the hidden states four times a
layer forward, six times backward (twice for the gradients of the weights: their inputs are gathered again). The vision
tower has none: two all-reduces a layer forward, two backward. With `parallel.split_vision` it has a share of the images
instead, whose tokens are gathered; the gradients of its weights are summed over the tensor-parallel ranks.
Context parallelism gathers keys and values of all ranks before attention, and scatters the sums of their gradients
after it (model/attention.py), hidden behind nothing; an image is computed on every rank that has some of its tokens.
One rank of a copy of the model copies the patches to its GPU and sends them to the others of the first stage.
Ranks are placed as Megatron places them: tensor, context, data, pipeline.

Left out: what embedding and head send with tensor parallelism (1 % of the layers'); launches of kernels, and that
products of fewer tokens or columns reach less of the peak, so small shares of a pack (large TP x CP) look better than
they are; checkpoints; a pack that costs more than the mean other than by `waiting`.
"""

from __future__ import annotations

from dataclasses import dataclass

from onevision.model.presets import PRESETS, SPATIAL_MERGE_SIZE
from onevision.model.sizes import parameters
from onevision.model.stages import StagePart, stage_parts
from onevision.planning.hardware import GPUS_PER_NODE, Gpu
from onevision.planning.layouts import Layout, laid_out
from onevision.planning.work import (
    ELEMENT,
    Packs,
    PackWork,
    copied_bytes,
    image_copies,
    memory_bytes,
    pack_work,
    stage_parameters,
)
from onevision.recipe import Recipe
from onevision.training.memory import MemoryEstimate, memory_estimate

PARTS = (
    "products",
    "attention",
    "vision",
    "element-wise",
    "tensor",
    "context",
    "pipeline",
    "bubble",
    "data-parallel",
    "optimizer",
    "waiting",
    "data",
)

_REST = {
    "bubble": "one micro-batch of every other stage, over the parts of a stage",
    "waiting": "its share of the computation of the slowest stage",
    "data": "patches copied from the host; decoding that takes longer than the step",
}


@dataclass(frozen=True)
class Term:
    """One line of the arithmetic: `amount` (`unit`) at `rate` (`unit`/s), `times` a step."""

    part: str  # of PARTS
    what: str
    amount: float
    unit: str  # FLOP or B
    rate: float
    rate_text: str
    times: float = 1

    @property
    def seconds(self) -> float:
        """Seconds a step."""
        return self.amount * self.times / self.rate


@dataclass(frozen=True)
class Prediction:
    """A layout's memory and time a step on the slowest stage, by terms and by parts (seconds)."""

    layout: Layout
    memory: MemoryEstimate
    terms: tuple[Term, ...]
    bubble: float
    waiting: float
    data: float
    tokens: float  # real ones a step, of all ranks
    model_flops: float  # of a step, of all ranks
    hardware_flops: float
    gpus: int
    peak: float  # FLOP/s of a GPU

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of every part of PARTS."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for term in self.terms:
            seconds[term.part] += term.seconds
        return seconds | {"bubble": self.bubble, "waiting": self.waiting, "data": self.data}

    @property
    def seconds(self) -> float:
        """Seconds a step."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """The arithmetic, to be redone by hand."""
        width = max(len(part) for part in PARTS)
        lines = []
        for term in self.terms:
            times = f" x {term.times:g}" if term.times != 1 else ""
            text = f"{term.what}: {term.amount:.4g} {term.unit}{times} / {term.rate_text}"
            lines.append(f"{term.part:<{width}}  {text} = {term.seconds:.4f} s")
        for part in ("bubble", "waiting", "data"):
            if self.parts[part]:
                lines.append(f"{part:<{width}}  {_REST[part]} = {self.parts[part]:.4f} s")
        return [*lines, f"{'step':<{width}}  the sum = {self.seconds:.3f} s"]

    @property
    def mfu(self) -> float:
        """Model FLOPs of real tokens over the peak."""
        return self.model_flops / (self.seconds * self.gpus * self.peak)

    @property
    def hfu(self) -> float:
        """What the GPUs are given, padding and recomputed layers included, over the peak."""
        return self.hardware_flops / (self.seconds * self.gpus * self.peak)

    @property
    def tokens_per_gpu(self) -> float:
        """Real tokens a second and GPU."""
        return self.tokens / self.seconds / self.gpus


def predict(recipe: Recipe, layout: Layout, gpus: int, gpu: Gpu, packs: Packs) -> Prediction:
    """Predict a step of the recipe's global batch. The layout must be one that `refusal` has nothing against."""
    laid = laid_out(recipe, layout)
    architecture = PRESETS[recipe.model.preset]
    data_ranks = layout.data_ranks(gpus)
    micro_batches = recipe.train.global_batch_size // (layout.micro_batch * data_ranks)
    stages = [
        StagePart(sum(part.layers for part in parts), parts[0].first, parts[-1].last)
        for parts in stage_parts(laid, architecture)
    ]
    work = pack_work(architecture, packs, laid.model)
    costs = {
        stage: _computation(laid, layout, gpu, packs, work, stage, micro_batches)
        + _communication(laid, layout, gpus, gpu, packs, stage, micro_batches)
        for stage in set(stages)
    }
    times = {stage: sum(term.seconds for term in terms) / micro_batches for stage, terms in costs.items()}
    slowest = max(stages, key=times.__getitem__)
    # The gradients of the fullest stage are the last to arrive, whichever stage is the slowest.
    fullest = max(stages, key=lambda stage: stage_parameters(architecture, laid.model, stage, laid.parallel)[1])
    terms = costs[slowest] + _step_end(laid, layout, gpus, gpu, fullest)
    computing = micro_batches * times[slowest]
    hardware = sum(work.linear.values()) + sum(work.attention.values())
    again = image_copies(packs, layout.micro_batch, layout.context) - 1
    hardware += again * (work.linear["vision"] + work.attention["vision"] + work.linear["adapter"])
    batch = recipe.train.global_batch_size
    most = packs.most_patches or recipe.data.max_patches or None
    return Prediction(
        layout,
        memory_estimate(laid, gpus, most),
        tuple(terms),
        bubble=(sum(times[stage] for stage in stages) - times[slowest]) / layout.virtual_pipeline,
        waiting=gpu.waiting.value * computing if data_ranks > 1 else 0.0,
        data=_exposed_data(laid, layout, gpu, packs, micro_batches, computing),
        tokens=batch * packs.samples * packs.sample_tokens,
        model_flops=batch * work.model,
        hardware_flops=batch * hardware,
        gpus=gpus,
        peak=gpu.peak.value * 1e12,
    )


def _computation(
    recipe: Recipe, layout: Layout, gpu: Gpu, packs: Packs, work: PackWork, stage: StagePart, micro_batches: int
) -> list[Term]:
    """What a rank of the stage does in every micro-batch of a step."""
    architecture, model = PRESETS[recipe.model.preset], recipe.model
    tokens = layout.micro_batch / layout.context  # packs whose tokens a rank has, with those beside it
    share = tokens / layout.tensor  # of a pack's work, on one rank
    copies = image_copies(packs, layout.micro_batch, layout.context)
    of_layers = share * stage.layers / architecture.language.num_layers
    peak, memory = gpu.peak.value * 1e12, gpu.memory_bandwidth.value * 1e9
    terms: list[Term] = []

    def flops(part: str, what: str, amount: float, reached: float) -> None:
        text = f"({gpu.peak.value:g}e12 x {reached:g})"
        terms.append(Term(part, what, amount, "FLOP", peak * reached, text, micro_batches))

    def streamed(what: str, amount: float) -> None:
        reached = gpu.memory_use.value
        text = f"({gpu.memory_bandwidth.value:g}e9 x {reached:g})"
        terms.append(Term("element-wise", what, amount, "B", memory * reached, text, micro_batches))

    flops("products", "language layers", of_layers * work.linear["language"], gpu.gemm.value)
    flops("attention", "attention of language", of_layers * work.attention["language"], gpu.attention.value)
    if stage.last:
        flops("products", "head", share * work.linear["head"], gpu.gemm.value)
    if stage.first:
        linear = work.linear["vision"] + work.linear["adapter"]
        flops("vision", "vision and adapter", copies * share * linear, gpu.vision_gemm.value)
        squares = copies * share * work.attention["vision"]
        flops("vision", "attention of vision", squares, gpu.vision_attention.value)
    for name, amount in memory_bytes(architecture, packs, model, stage, recipe.parallel).items():
        if amount:
            streamed(name, tokens * amount * (copies if name == "vision" else 1))
    streamed("adding to gradients", 8 * stage_parameters(architecture, model, stage, recipe.parallel)[1])
    return terms


def _communication(
    recipe: Recipe, layout: Layout, gpus: int, gpu: Gpu, packs: Packs, stage: StagePart, micro_batches: int
) -> list[Term]:
    """What a rank of the stage sends in every micro-batch within its copy of the model: tensor, context, pipeline."""
    architecture, model = PRESETS[recipe.model.preset], recipe.model
    language, vision = architecture.language, architecture.vision
    tensor, context, again = layout.tensor, layout.context, model.recompute == "full"
    tokens = layout.micro_batch * packs.length / context
    terms = []
    if tensor > 1:
        passes = 8 + 2 * ("language" not in model.freeze) + 4 * again
        sent = tokens * language.hidden_size * stage.layers * passes
        images = layout.micro_batch / context * image_copies(packs, layout.micro_batch, context)
        if recipe.parallel.split_vision:  # gathered; a rank has the gradients of all and takes its own
            sent += images * packs.patches / SPATIAL_MERGE_SIZE**2 * language.hidden_size * stage.first
        else:
            passes = 4 + (4 + 4 * again) * ("vision" not in model.freeze)
            sent += images * packs.rows * vision.hidden_size * vision.num_layers * passes * stage.first
        amount = ELEMENT * sent * (tensor - 1) / tensor
        terms.append(Term("tensor", "gathered and scattered states", amount, "B", *_nvlink(gpu), micro_batches))
    if context > 1:
        key_value = 2 * language.num_query_groups * language.head_dim / tensor
        # Forward keys and values, backward their gradients; forward again where attention is recomputed.
        core = model.recompute == "selective" and "core_attn" in model.recompute_modules
        amount = ELEMENT * tokens * (context - 1) * key_value * stage.layers * (2 + (again or core))
        rate, text = _nvlink(gpu) if tensor * context <= GPUS_PER_NODE else _network(gpu, tensor)
        terms.append(Term("context", "keys and values", amount, "B", rate, text, micro_batches))
    if layout.pipeline > 1:
        # One way forward, one way backward, for each part of the stage.
        amount = 2 * ELEMENT * tokens * language.hidden_size / tensor * layout.virtual_pipeline
        rate, text = _nvlink(gpu) if gpus <= GPUS_PER_NODE else _network(gpu, GPUS_PER_NODE)
        terms.append(Term("pipeline", "states to the next stage", amount, "B", rate, text, micro_batches))
    return terms


def _step_end(recipe: Recipe, layout: Layout, gpus: int, gpu: Gpu, stage: StagePart) -> list[Term]:
    """What follows the last micro-batch: gradients scattered, the optimizer, weights gathered."""
    trained = stage_parameters(PRESETS[recipe.model.preset], recipe.model, stage, recipe.parallel)[1]
    ranks = layout.data_ranks(gpus) * layout.context
    terms = []
    if recipe.parallel.split_vision and stage.first:
        count = parameters(PRESETS[recipe.model.preset])
        summed = sum(count[name] for name in ("vision", "adapter") if name not in recipe.model.freeze)
        amount = 2 * 4 * summed * (layout.tensor - 1) / layout.tensor
        terms.append(Term("tensor", "gradients of vision and adapter", amount, "B", *_nvlink(gpu)))
    if ranks > 1:
        if ranks * layout.tensor <= GPUS_PER_NODE:
            rate, text = _nvlink(gpu)
        else:  # a ring of whole nodes: rings side by side, one a tensor rank, share the node's network
            rate, text = _network(gpu, layout.tensor)
        sent = (4 + ELEMENT) * trained * (ranks - 1) / ranks * (1 - gpu.overlap.value)
        terms.append(Term("data-parallel", "gradients (4 B) and weights (2 B)", sent, "B", rate, text))
    # Of its share a rank reads the gradient, reads and writes master and two moments, writes the weight; then zeroes
    # all gradients, which the norm has read.
    amount = 30 * trained / ranks + 4 * trained + 4 * trained / ranks
    rate = gpu.memory_bandwidth.value * 1e9 * gpu.memory_use.value
    text = f"({gpu.memory_bandwidth.value:g}e9 x {gpu.memory_use.value:g})"
    terms.append(Term("optimizer", "AdamW on a share, zeroed gradients", amount, "B", rate, text))
    return terms


def _exposed_data(
    recipe: Recipe, layout: Layout, gpu: Gpu, packs: Packs, micro_batches: int, computing: float
) -> float:
    """Seconds a step for patches on their way to the GPU, and for decoding beyond the step's computation."""
    read = micro_batches * layout.micro_batch
    copied = read * copied_bytes(packs) / (gpu.host_link.value * 1e9)
    if layout.tensor * layout.context > 1:
        within = layout.tensor * layout.context <= GPUS_PER_NODE
        copied += read * copied_bytes(packs) / (_nvlink(gpu) if within else _network(gpu, 1))[0]
    decoding = read * packs.samples / (gpu.decode.value * max(1, recipe.data.workers))
    return copied + max(0.0, decoding - computing)


def _nvlink(gpu: Gpu) -> tuple[float, str]:
    link, use = gpu.nvlink.value, gpu.nvlink_use.value
    return link * 1e9 * use, f"({link:g}e9 x {use:g})"


def _network(gpu: Gpu, sharing: int) -> tuple[float, str]:
    link, use = gpu.network.value, gpu.network_use.value
    over = f" / {sharing}" if sharing > 1 else ""
    return link * 1e9 * use / sharing, f"({link:g}e9 x {use:g}{over})"
