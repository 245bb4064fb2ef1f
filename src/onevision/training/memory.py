"""How much memory a GPU needs for a training step, and a disk for a checkpoint. All formulas stand here, to be redone
by hand; nothing is allocated and torch is not needed.

Symbols: T tokens and P patches of a micro-batch, I images, R = P + I rows of the vision tower (a class token an image);
e bytes an element (2 for BF16, 4 for FP32). Language: H hidden, F MLP, q = heads*d, k = groups*d, V vocabulary. Vision:
h hidden, f MLP. N parameters of a rank, n of them trained, D ranks that share the optimizer's state: data-parallel and
context-parallel ones. t tensor-parallel ranks; s = t with sequence parallelism, else 1.

    weights            e*N
      in FP8           2*N of the layers             copies for the products, turned both ways, kept over a step
    gradients          4*n                           one FP32 buffer; 2*n with train.grad_reduce_in_fp32=false
    optimizer state    (8 + (4 if BF16))*n / D       two moments, and FP32 masters of BF16 weights; 6*n / D with
                                                     optimizer.state_dtype=bf16
    data               (588*4*P + 48*T) * (1 + data.prefetch_packs, in micro-batches): the one in use, those ahead.
                       With train.rerun=validate all of a step in place of the 1, and so where ranks share a model, on
                       each of them; then none ahead but on the first stage, which alone has patches. 588*2*P with
                       data.resize=device in BF16

Activations kept for the backward pass, of parts that it passes through (those trained, and those behind them):

    a language layer   T*(2H*e/s + (e*(3q + 3k + 2F) + 4*heads)/t)
                       inputs of two norms; the fused qkv; q and k turned, attention's output and log-sums; gate and up
                       of SwiGLU
      trained          T*e*(2H/s + F/t), inputs of the products (that of the projection is attention's output)
    begin of language  T*e*H*(1 - 1/s): a rank's share of the first layer's input is a view of the whole
    end of language    T*e*H*(1/s + 1), the input of the last norm, and the gradient of what it gives
    loss               2,048 rows of logits and of their gradients, 2,048*V*2e/t, and with sequence parallelism its
                       input, T*e*H; if trained, and targets may be more than these rows, also V*H*4/t, the gradient of
                       the head (of fewer the gradients of their logits are kept in its place)
    a vision layer     R*(4h*e + (e*(4h + 2f) + 4*heads)/t), as above with a plain MLP, and q and k turned where the
                       fused qkv lies; it has no sequence parallelism
    begin of vision    e*(588*P + h*R)
    adapter            e*(h*P*(2 + 2/t) + H*P/4); not trained, e*(h*P*(1 + 1/t) + H*P/4); of its H*P/4 what the rank's
                       tokens have room for

`model.recompute=full` keeps the input of each block of `recompute_layers` layers (T*e*H/s, R*e*h), and during the
backward pass one whole block. `selective` with core_attn gains nothing but the log-sums of attention: what it would
recompute is not kept by attention kernels that never store the square. With mlp a layer of language keeps e*2F/t
less, and e*F/t if trained, which are there during its backward pass. With activation a layer of language keeps e*F/t
less if trained, one of vision e*f/t.
FP8 keeps the inputs of products in one byte a value, which is not counted: the estimate is that of BF16.
With `performance.cuda_graphs` language has memory of its own: its activations are there in vision's backward pass too.
A layer has a copy of attention's output besides, T*e*q; all share the gradients that go in and out, T*e*(H + 2q + 2k).
`performance.tp_comm_overlap` has 12 buffers of T*e*H.

The fullest moment is one of: the loss; the backward pass of a language block (with the gradients of the MLP's
activations, T*e*3F/t, and with sequence parallelism the gathered input of a product, T*e*H); that of a vision block
(R*e*2f/t), when this micro-batch's activations of language are gone. For a checkpoint the optimizer's state is gathered
in the memory of the first rank's host (12*n bytes), not on a GPU.

How ranks share a model:

    tensor             N / t (norms and biases, which each rank has whole, are below 1 %), activations as above
      split_vision     vision and adapter as with t = 1, for P/t patches and (1 - 1/t) of the largest image at most; the
                       tokens of all images on each rank
    context (C ranks)  T/C tokens. Of keys and values, which ranks exchange, 2k a token instead of k for each token that
                       a rank's two chunks see: T/C and what is before them in two samples, at most T + T/2C. Images are
                       computed where their tokens are: at most 4T/C patches, and one image more at each end of a chunk
                       that is a cut (two for C = 2, else four)
    pipeline           each stage its parts of the language layers; the first also vision, adapter and embedding, the
                       last the head and the loss. As many micro-batches as `onevision.training.in_flight` says

Of all of these the fullest stage is told. An image has at most max_pixels/196 patches, a sample the tokens of a pack.

The layers are those of a GPU without Transformer Engine (`onevision.model.fused`). On a CPU, where each part of an
elementwise formula keeps its own inputs, they keep up to 40 % more in FP32, and more in BF16, where norms work on FP32
copies. What is kept is measured on a CPU and read in the source for a GPU; with the modules of a GPU, run on tensors
without content, autograd keeps what these formulas say within 0.1 %. An H100 in stage 1.5 of 1.7b had 78.9 GB in
tensors (benchmarks/results/gpu-h100-2026-11-27) where they say 70.0. The rest was held for nothing, and is no longer:
hooks of recomputed activations kept 2*f*e bytes a row of each vision layer, 8.8 GB, until the next micro-batch's
loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onevision.data.schedule import batches_ahead
from onevision.model.presets import CHANNELS, HEAD_ROWS, PATCH_VALUES, PRESETS, SPATIAL_MERGE_SIZE, Architecture
from onevision.model.sizes import parameters, query_key_widths
from onevision.model.stages import StagePart, stage_parts
from onevision.recipe import ModelRecipe, ParallelRecipe, Recipe
from onevision.training.in_flight import most_in_flight

# CUDA's context with its kernels (about 0.6 GB), NCCL's buffers (about 1 GB), workspaces of cuBLAS and attention.
FIXED_BYTES = 2e9
FRAGMENTATION = 0.05  # of everything else: room that PyTorch's allocator holds and cannot hand out
TOKEN_BYTES = 48  # of the step's data: tokens, labels, positions, mask, places of images and their like
_USER_BUFFERS = 12  # onevision.model.user_buffers
PATCHES_PER_TOKEN = SPATIAL_MERGE_SIZE**2


@dataclass(frozen=True)
class MicroBatch:
    """What passes through the model, or one rank of it, at once: T tokens, P patches of I images."""

    tokens: int
    patches: int
    images: int
    keys: int = (
        0  # of tokens whose keys and values came from other ranks, this rank's among them; 0: no others have any
    )


@dataclass(frozen=True)
class Kept:
    """Bytes that one micro-batch keeps for its backward pass, and those of one block in its backward pass."""

    vision: float  # with the adapter
    language: float  # without the loss
    vision_block: float  # 0 without recompute: then nothing is added
    language_block: float


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one GPU by part, at the moment when they are most."""

    parts: dict[str, float]
    moment: str  # what happens then

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """A table of the parts in GB (1e9 bytes)."""
        rows = [*self.parts.items(), ("together", self.total)]
        width = max(len(name) for name, _ in rows)
        return [f"memory a GPU, estimated, at its fullest ({self.moment}):"] + [
            f"  {name:<{width}}  {size / 1e9:7.2f} GB" for name, size in rows
        ]


def parameter_counts(architecture: Architecture) -> dict[str, int]:
    """Parameters of the parts that can be frozen: vision, adapter, language."""
    count = parameters(architecture)
    language = count["embedding"] + architecture.language.num_layers * count["layer"] + count["norm"] + count["head"]
    return {"vision": count["vision"], "adapter": count["adapter"], "language": language}


def trained_parameters(recipe: Recipe) -> int:
    """Parameters that a recipe does not freeze."""
    counts = parameter_counts(PRESETS[recipe.model.preset])
    return sum(count for part, count in counts.items() if part not in recipe.model.freeze)


def checkpoint_bytes(recipe: Recipe) -> int:
    """Bytes of one checkpoint on disk: e*N of weights, and 12*n of FP32 masters and moments."""
    weights = sum(parameter_counts(PRESETS[recipe.model.preset]).values())
    return _element(recipe) * weights + 12 * trained_parameters(recipe)


def kept_activations(
    architecture: Architecture,
    model: ModelRecipe,
    element: int,
    batch: MicroBatch,
    parallel: ParallelRecipe | None = None,
    part: StagePart | None = None,
) -> Kept:
    """Activations that one rank keeps of the forward pass of its share `batch` through a part of the model (default:
    all of it), with the tensor and sequence parallelism of `parallel`."""
    parallel = parallel or ParallelRecipe()
    part = part or StagePart(architecture.language.num_layers, first=True, last=True)
    vision, language, tensor = architecture.vision, architecture.language, parallel.tensor
    shared = tensor if parallel.sequence else 1
    trained = {name: name not in model.freeze for name in ("vision", "adapter", "language")}
    full, block = model.recompute == "full", model.recompute_layers
    modules = model.recompute_modules if model.recompute == "selective" else []
    log_sums = 0 if "core_attn" in modules else 4
    tokens, patches, rows = batch.tokens, batch.patches, batch.patches + batch.images

    hidden, ffn = language.hidden_size, language.ffn_hidden_size
    q, k = query_key_widths(architecture)
    states = hidden * (4 if trained["language"] else 2) / shared
    heads = (element * (3 * q + 2 * k) + log_sums * language.num_attention_heads) / tensor
    keys = element * k * (2 * batch.keys or tokens) / tensor
    active = ffn * (trained["language"] and "activation" not in modules)
    mlp = element * (2 * ffn + active) / tensor
    again = mlp * ("mlp" in modules)
    layer = tokens * (element * states + heads + mlp - again) + keys
    inside = tokens * element * hidden / shared * math.ceil(part.layers / block) if full else layer * part.layers
    begin = tokens * element * hidden * (1 - 1 / shared) * part.first
    end = tokens * element * hidden * (1 / shared + 1) * part.last
    kept_language = inside + begin + end
    language_block = layer * min(block, part.layers) if full else tokens * again

    kept_vision = vision_block = 0.0
    split = 1 if parallel.split_vision else tensor
    h, f = vision.hidden_size, vision.ffn_hidden_size
    if part.first and trained["vision"]:
        whole = 4 * element * h
        active = f * (1 if "activation" in modules else 2)
        layer = rows * (whole + (element * (4 * h + active) + log_sums * vision.num_attention_heads) / split)
        inside = rows * element * h * math.ceil(vision.num_layers / block) if full else layer * vision.num_layers
        kept_vision += inside + element * (h * rows + PATCH_VALUES * patches)
        vision_block = layer * min(block, vision.num_layers) if full else 0.0
    if part.first and (trained["vision"] or trained["adapter"]):
        inputs = 2 if trained["adapter"] else 1  # the norm's and GELU's; if trained, those of the two products
        image_tokens = min(tokens, patches / PATCHES_PER_TOKEN * (tensor / split))
        kept_vision += element * (inputs * h * patches * (1 + 1 / split) + hidden * image_tokens)
    return Kept(kept_vision, kept_language, vision_block, language_block)


def memory_estimate(recipe: Recipe, world_size: int, pack_patches: int | None = None) -> MemoryEstimate:
    """Memory of the fullest GPU of `world_size` at its fullest moment.

    `pack_patches` is the largest number of patches in a pack; unknown, it is taken as 4 a token, more than which cannot
    be. `world_size` must be a multiple of the ranks that share a model, whose layout the recipe's model allows.
    """
    stages = stage_parts(recipe, PRESETS[recipe.model.preset])
    # Of stages with the same parts the first keeps most micro-batches.
    different = {tuple(parts): stage for stage, parts in reversed(list(enumerate(stages)))}
    estimates = [
        stage_estimate(recipe, world_size, pack_patches, stage, list(parts)) for parts, stage in different.items()
    ]
    return max(estimates, key=lambda estimate: estimate.total)


def stage_estimate(
    recipe: Recipe, world_size: int, pack_patches: int | None, stage: int, parts: list[StagePart]
) -> MemoryEstimate:
    """Memory of a rank of the pipeline's `stage`, which has these parts of the model, at its fullest moment."""
    architecture, model, train, parallel = PRESETS[recipe.model.preset], recipe.model, recipe.train, recipe.parallel
    language, vision = architecture.language, architecture.vision
    element, tensor = _element(recipe), parallel.tensor
    data_ranks = max(1, world_size // parallel.model_ranks)
    micro_batches = max(1, train.global_batch_size // (train.micro_batch_size * data_ranks))
    whole = _worst_batch(recipe, pack_patches)
    batch = rank_share(whole, recipe)
    first, last = parts[0].first, parts[-1].last

    count = parameters(architecture)
    split = 1 if parallel.split_vision else tensor
    layers = sum(part.layers for part in parts) * count["layer"]
    ends = count["embedding"] * first + count["head"] * last
    held = {
        "vision": count["vision"] * first / split,
        "adapter": count["adapter"] * first / split,
        "language": (layers + ends + count["norm"] * last) / tensor,
    }
    weights = sum(held.values())
    trained = sum(size for name, size in held.items() if name not in model.freeze)
    gradient = 4 if train.grad_reduce_in_fp32 else 2
    state, sharing = _state_bytes(recipe), data_ranks * parallel.context
    patch = element if recipe.data.resize == "device" else 4
    data = patch * PATCH_VALUES * whole.patches * first + TOKEN_BYTES * whole.tokens
    there = micro_batches if parallel.model_ranks > 1 or train.rerun == "validate" else 1
    ahead = batches_ahead(recipe.data, train.micro_batch_size) * first
    always = {
        f"weights ({'BF16' if element == 2 else 'FP32'})": element * weights,
        f"gradients ({'FP32' if gradient == 4 else 'BF16'})": gradient * trained,
        f"optimizer state, 1/{sharing} of it": state * trained / sharing,
        "data, in use and ahead": data * (there + ahead),
    }
    if train.precision == "fp8":
        always["FP8 copies of weights"] = 2 * (weights - ends / tensor)
    if recipe.performance.cuda_graphs:
        q, k = query_key_widths(architecture)
        copies = language.num_layers * q + language.hidden_size + 2 * q + 2 * k
        always["CUDA graphs"] = batch.tokens * element * copies
    if recipe.performance.tp_comm_overlap:
        always["user buffers"] = _USER_BUFFERS * batch.tokens * element * language.hidden_size

    kept = [kept_activations(architecture, model, element, batch, parallel, part) for part in parts]
    waiting = most_in_flight(stage, parallel.pipeline, parallel.virtual_pipeline, micro_batches)
    of_vision, of_language = max(
        (
            (times[0] * kept[0].vision, sum(n * one.language for n, one in zip(times, kept, strict=True)))
            for times in waiting
        ),
        key=sum,
    )
    through_vision = {"activations of vision and adapter": of_vision}
    through = through_vision | {"activations of language": of_language}
    states = batch.tokens * element * language.hidden_size * parallel.sequence  # gathered from the tensor ranks
    head = 4 * language.vocab_size * language.hidden_size * ("language" not in model.freeze)
    logits = 2 * element * min(batch.tokens, HEAD_ROWS) * language.vocab_size
    language_block = max(one.language_block for one in kept)
    language_work = language_block + batch.tokens * element * 3 * language.ffn_hidden_size / tensor + states
    vision_work = kept[0].vision_block + (batch.patches + batch.images) * element * 2 * vision.ffn_hidden_size / split
    moments = {
        "backward of a language layer": through | {"a language block's backward": language_work},
    }
    if last:
        moments["loss"] = through | {"logits, loss, the head's gradient": (logits + head) / tensor + states}
    if first and "vision" not in model.freeze:
        others = of_language - kept[0].language  # of the micro-batches behind
        behind = through | {"activations of language": others} if others else through_vision
        if recipe.performance.cuda_graphs:
            behind = through | {"a language block's backward": language_work}
        moments["backward of a vision layer"] = behind | {"a vision block's backward": vision_work}
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    estimated = always | moments[moment]
    return MemoryEstimate(
        estimated | {"CUDA, NCCL, fragmentation": FIXED_BYTES + FRAGMENTATION * sum(estimated.values())}, moment
    )


def rank_share(batch: MicroBatch, recipe: Recipe) -> MicroBatch:
    """The most of a micro-batch that a rank can have: its tokens, and the images that it computes."""
    parallel, ranks, length = recipe.parallel, recipe.parallel.context, recipe.data.sequence_length
    largest = math.ceil(recipe.data.max_pixels * CHANNELS / PATCH_VALUES)
    patches, tokens, keys = batch.patches, batch.tokens, 0
    if ranks > 1:
        tokens //= ranks
        keys = min(tokens + 2 * length, batch.tokens + tokens // 2)
        patches = min(patches, PATCHES_PER_TOKEN * tokens + (2 if ranks == 2 else 4) * largest)
    if parallel.split_vision:
        # The image that makes a rank's share the largest went to the rank that had least (model/split.py).
        patches = min(patches, math.ceil((patches + (parallel.tensor - 1) * largest) / parallel.tensor))
    return MicroBatch(tokens, patches, min(batch.images, _most_images(recipe, patches)), keys)


def _worst_batch(recipe: Recipe, pack_patches: int | None) -> MicroBatch:
    """The micro-batch with most patches."""
    packs, length = recipe.train.micro_batch_size, recipe.data.sequence_length
    patches = packs * (PATCHES_PER_TOKEN * length if pack_patches is None else pack_patches)
    return MicroBatch(packs * length, patches, _most_images(recipe, patches))


def _most_images(recipe: Recipe, patches: int) -> int:
    """No image has fewer than min_pixels / 14^2 patches."""
    return math.ceil(patches * PATCH_VALUES / CHANNELS / recipe.data.min_pixels)


def _state_bytes(recipe: Recipe) -> int:
    """Of the optimizer, a trained parameter: two moments, and with BF16 weights what they lack of FP32 ones."""
    if recipe.optimizer.state_dtype == "bf16":
        return 4 + 2  # Transformer Engine's Adam keeps the lower half of the FP32 weight; the upper is the BF16 one
    return 8 + (4 if _element(recipe) == 2 else 0)


def _element(recipe: Recipe) -> int:
    return 4 if recipe.train.precision == "fp32" else 2
