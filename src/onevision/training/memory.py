"""How much memory a GPU needs for a training step, and a disk for a checkpoint. All formulas stand here, to be redone
by hand; nothing is allocated and torch is not needed.

Symbols: T tokens and P patches of a micro-batch, I images, R = P + I rows of the vision tower (a class token an image);
e bytes an element (2 for BF16, 4 for FP32). Language: H hidden, F MLP, q = heads*d, k = groups*d, V vocabulary. Vision:
h hidden, f MLP, c channels a head. N parameters of a rank, n of them trained, D data-parallel ranks.

    weights            e*N
      in FP8           2*N of the layers             copies for the products, turned both ways, kept over a step
    gradients          4*n                           one FP32 buffer; 2*n with train.grad_reduce_in_fp32=false
    optimizer state    (8 + (4 if BF16))*n / D       two moments, and FP32 masters of BF16 weights; 6*n / D with
                                                     optimizer.state_dtype=bf16
    data of the step   (588*4*P + 48*T) * micro-batches

Activations kept for the backward pass, of parts that it passes through (those trained, and those behind them):

    a language layer   T*(e*(2H + 4q + 3k + 2F) + 4*heads)
                       inputs of two norms; q of the norm of q, the fused qkv; q and k turned, attention's output and
                       log-sums; gate and up of SwiGLU
      trained          T*e*(2H + F), inputs of the products (that of the projection is attention's output)
    end of language    T*e*2H, the input of the last norm, and the gradient of what it gives
    loss               V*H*4 if trained, the gradient of the head; while it is made also 2,048 rows of logits and of
                       their gradients, 2,048*V*2e
    a vision layer     R*(e*(10h + 2f) + 4*heads), as above with a plain MLP and no norms of q and k
    begin of vision    e*(588*P + h*R)
    adapter            e*(4*h*P + H*P/4)

`model.recompute=full` keeps the input of each block of `recompute_layers` layers (T*e*H, R*e*h), and during the
backward pass one whole block. `selective` with core_attn gains nothing but the log-sums of attention: what it would
recompute is not kept by attention kernels that never store the square. With mlp a layer of language keeps e*2F
less, and e*F if trained, which are there during its backward pass. With activation a layer of language keeps e*F
less if trained, one of vision e*f.
FP8 keeps the inputs of products in one byte a value, which is not counted: the estimate is that of BF16.

The fullest moment is one of: the loss; the backward pass of a language block (with the gradients of the MLP's
activations, T*e*3F); that of a vision block (R*e*2f), when language's activations are gone. For a checkpoint the
optimizer's state is gathered in the memory of the first rank's host (12*n bytes), not on a GPU.

Tensor parallelism divides N and all activations (with sequence parallelism), context parallelism the activations and,
as more data-parallel ranks do, the optimizer's state. Pipeline parallelism divides the language layers: the first
stage has vision, adapter and embedding, and keeps the activations of `pipeline` micro-batches; the last has the head
and the loss.

The layers are those of a GPU without Transformer Engine (`onevision.model.fused`). On a CPU, where each part of an
elementwise formula keeps its own inputs, they keep up to 40 % more in FP32, and more in BF16, where norms work on FP32
copies. What is kept is measured on a CPU and read in the source for a GPU. An H100 in stage 1.5 of 1.7b had 78.9 GB
in tensors where these formulas say 70.9 (benchmarks/results/gpu-h100-2026-11-27): the rest is not explained yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onevision.model.presets import HEAD_ROWS, PATCH_VALUES, PRESETS, SPATIAL_MERGE_SIZE, Architecture
from onevision.model.sizes import parameters, query_key_widths
from onevision.recipe import ModelRecipe, Recipe

# CUDA's context with its kernels (about 0.6 GB), NCCL's buffers (about 1 GB), workspaces of cuBLAS and attention.
FIXED_BYTES = 2e9
FRAGMENTATION = 0.05  # of everything else: room that PyTorch's allocator holds and cannot hand out
TOKEN_BYTES = 48  # of the step's data: tokens, labels, positions, mask, places of images and their like
PATCHES_PER_TOKEN = SPATIAL_MERGE_SIZE**2


@dataclass(frozen=True)
class MicroBatch:
    """What passes through the model at once: T tokens, P patches of I images."""

    tokens: int
    patches: int
    images: int


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
    architecture: Architecture, model: ModelRecipe, element: int, batch: MicroBatch, layers: int | None = None
) -> Kept:
    """Activations kept by the forward pass of a micro-batch through `layers` language layers (default: all)."""
    vision, language = architecture.vision, architecture.language
    layers = language.num_layers if layers is None else layers
    trained = {part: part not in model.freeze for part in ("vision", "adapter", "language")}
    full, block = model.recompute == "full", model.recompute_layers
    modules = model.recompute_modules if model.recompute == "selective" else []
    log_sums = 0 if "core_attn" in modules else 4
    tokens, patches, rows = batch.tokens, batch.patches, batch.patches + batch.images

    hidden, ffn = language.hidden_size, language.ffn_hidden_size
    q, k = query_key_widths(architecture)
    layer = element * (2 * hidden + 4 * q + 3 * k + 2 * ffn) + log_sums * language.num_attention_heads
    active = element * ffn * (trained["language"] and "activation" not in modules)
    if trained["language"]:
        layer += element * 2 * hidden + active
    again = (element * 2 * ffn + active) * ("mlp" in modules)
    layer -= again
    inside = element * hidden * math.ceil(layers / block) if full else layer * layers
    end = element * hidden * 2
    kept_language = tokens * (inside + end)
    language_block = tokens * layer * min(block, layers) if full else tokens * again

    h, f = vision.hidden_size, vision.ffn_hidden_size
    kept_vision = vision_block = 0.0
    if trained["vision"]:
        layer = element * (10 * h + (1 if "activation" in modules else 2) * f) + log_sums * vision.num_attention_heads
        inside = element * h * math.ceil(vision.num_layers / block) if full else layer * vision.num_layers
        kept_vision += rows * (inside + element * h) + element * PATCH_VALUES * patches
        vision_block = rows * layer * min(block, vision.num_layers) if full else 0.0
    if trained["vision"] or trained["adapter"]:
        inputs = 4 if trained["adapter"] else 2  # the norm's and GELU's; if trained, those of the two products
        kept_vision += element * (inputs * h * patches + hidden * patches / SPATIAL_MERGE_SIZE**2)
    return Kept(kept_vision, kept_language, vision_block, language_block)


def memory_estimate(
    recipe: Recipe, world_size: int, pack_patches: int | None = None, *, context: int = 1
) -> MemoryEstimate:
    """Memory of the fullest GPU of `world_size` at its fullest moment.

    `pack_patches` is the largest number of patches in a pack; unknown, it is taken as 4 a token, more than which cannot
    be. `world_size` must be a multiple of the ranks that share a model. `context` ranks share the tokens and images of
    a pack (context parallelism, which training does not have yet).
    """
    stages = {(True, recipe.parallel.pipeline == 1), (recipe.parallel.pipeline == 1, True)}
    estimates = [_stage(recipe, world_size // context, pack_patches, first, last, context) for first, last in stages]
    return max(estimates, key=lambda estimate: estimate.total)


def _stage(
    recipe: Recipe, world_size: int, pack_patches: int | None, first: bool, last: bool, context: int
) -> MemoryEstimate:
    architecture, model, train, parallel = PRESETS[recipe.model.preset], recipe.model, recipe.train, recipe.parallel
    language, vision = architecture.language, architecture.vision
    element, tensor = _element(recipe), parallel.tensor
    data_ranks = max(1, world_size // (tensor * parallel.pipeline))
    micro_batches = max(1, train.global_batch_size // (train.micro_batch_size * data_ranks))
    batch = _worst_batch(recipe, pack_patches)
    layers = math.ceil(language.num_layers / parallel.pipeline)

    count = parameters(architecture)
    part = {"vision": count["vision"] * first, "adapter": count["adapter"] * first}
    part["language"] = layers * count["layer"] + count["embedding"] * first + (count["norm"] + count["head"]) * last
    weights = sum(part.values()) / tensor
    trained = sum(size for name, size in part.items() if name not in model.freeze) / tensor
    gradient = 4 if train.grad_reduce_in_fp32 else 2
    state = _state_bytes(recipe)
    always = {
        f"weights ({'BF16' if element == 2 else 'FP32'})": element * weights,
        f"gradients ({'FP32' if gradient == 4 else 'BF16'})": gradient * trained,
        f"optimizer state, 1/{data_ranks * context} of it": state * trained / (data_ranks * context),
        "data of the step": (4 * PATCH_VALUES * batch.patches + TOKEN_BYTES * batch.tokens) * micro_batches,
    }
    if train.precision == "fp8":
        ends = count["embedding"] * first + count["head"] * last
        always["FP8 copies of weights"] = 2 * (weights - ends / tensor)

    shared = tensor * context
    in_flight = min(parallel.pipeline, micro_batches) if first else 1
    kept = kept_activations(architecture, model, element, batch, layers)
    through_vision = {"activations of vision and adapter": kept.vision * first * in_flight / shared}
    through = through_vision | {"activations of language": kept.language * in_flight / shared}
    head = 4 * language.vocab_size * language.hidden_size * ("language" not in model.freeze)
    logits = 2 * element * min(batch.tokens, HEAD_ROWS) * language.vocab_size
    rows = batch.patches + batch.images
    language_work = kept.language_block + batch.tokens * element * 3 * language.ffn_hidden_size
    vision_work = kept.vision_block + rows * element * 2 * vision.ffn_hidden_size
    moments = {
        "backward of a language layer": through | {"a language block's backward": language_work / shared},
    }
    if last:
        moments["loss"] = through | {"logits, loss, the head's gradient": (logits + head) / tensor}
    if first and "vision" not in model.freeze:
        moments["backward of a vision layer"] = through_vision | {"a vision block's backward": vision_work / shared}
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = always | moments[moment]
    return MemoryEstimate(
        parts | {"CUDA, NCCL, fragmentation": FIXED_BYTES + FRAGMENTATION * sum(parts.values())}, moment
    )


def _worst_batch(recipe: Recipe, pack_patches: int | None) -> MicroBatch:
    """The micro-batch with most patches; no image has fewer than min_pixels / 14^2 of them."""
    packs, length = recipe.train.micro_batch_size, recipe.data.sequence_length
    patches = packs * (PATCHES_PER_TOKEN * length if pack_patches is None else pack_patches)
    return MicroBatch(packs * length, patches, math.ceil(patches * PATCH_VALUES / 3 / recipe.data.min_pixels))


def _state_bytes(recipe: Recipe) -> int:
    """Of the optimizer, a trained parameter: two moments, and with BF16 weights what they lack of FP32 ones."""
    if recipe.optimizer.state_dtype == "bf16":
        return 4 + 2  # Transformer Engine's Adam keeps the lower half of the FP32 weight; the upper is the BF16 one
    return 8 + (4 if _element(recipe) == 2 else 0)


def _element(recipe: Recipe) -> int:
    return 4 if recipe.train.precision == "fp32" else 2
