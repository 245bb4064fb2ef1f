"""How many floating-point operations a step takes, counted from what was really in it. All formulas stand here.

A product of [m, k] and [k, n] takes 2*m*k*n operations. Norms, activations, rotary embeddings, softmax and the loss
are not counted (below 1 %), nor is the optimizer.

Forward, with T tokens, P patches, one class token an image (I images), segments of L tokens:

    language, a layer    2*T*H*(q + 2*kv) + 2*T*q*H + 3 * 2*T*H*F      q = heads*d, kv = groups*d, SwiGLU has 3 matrices
    language attention   4*q*sum(L^2), of which a causal mask leaves 4*q*sum(L*(L+1)/2)
    head                 2*N*H*V, of the N tokens that are targets: the others have no loss
    patch embedding      2*P*588*h
    vision, a layer      2*(P+I)*(4*h*h + 2*h*f)
    vision attention     4*h*sum((patches of the image + 1)^2), no mask
    adapter              2*(P/4)*(4h*4h + 4h*H)

Backward: a product costs as much again for the gradient of each operand that needs one: the weight when it is
trained, the input when something trained lies before it. Attention's two products have two such operands each.

Model FLOPs (MFU) count the real tokens, once forward and once backward. Hardware FLOPs (HFU) count what the device
was given: the padded tail of a pack, the whole square where a kernel has no causal shortcut is still counted causal,
and the second forward pass of recomputed layers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onevision.model.presets import PATCH_VALUES, SPATIAL_MERGE_SIZE, Architecture
from onevision.recipe import ModelRecipe

if TYPE_CHECKING:  # counting needs no torch, and `make plan` starts without it
    import torch


@dataclass(frozen=True)
class Work:
    """What went through the model: lengths of the language segments, patches of each image, and how many tokens were
    targets of the loss (None: all)."""

    segments: Sequence[float]
    images: Sequence[float]
    targets: float | None = None

    @property
    def heads(self) -> float:
        """Tokens for which the head was computed."""
        return sum(self.segments) if self.targets is None else self.targets


@dataclass(frozen=True)
class PartFlops:
    """Forward operations of one part: products with weights, and attention's products of activations."""

    linear: float
    attention: float
    first: float = 0.0  # the share of `linear` whose input is data and never needs a gradient


def forward_flops(architecture: Architecture, work: Work, *, causal: bool = True) -> dict[str, PartFlops]:
    """Forward operations of vision, adapter and language; `causal=False` counts attention's whole square."""
    vision, language = architecture.vision, architecture.language
    tokens, patches = sum(work.segments), sum(work.images)
    width, inner = vision.hidden_size, architecture.merged_size
    hidden, query = language.hidden_size, language.num_attention_heads * language.head_dim
    key_value = language.num_query_groups * language.head_dim

    rows = patches + len(work.images)
    embedding = 2.0 * patches * PATCH_VALUES * width
    vision_linear = embedding + vision.num_layers * 2.0 * rows * (4 * width**2 + 2 * width * vision.ffn_hidden_size)
    vision_attention = vision.num_layers * 4.0 * width * sum((image + 1) ** 2 for image in work.images)

    image_tokens = patches / SPATIAL_MERGE_SIZE**2
    adapter = 2.0 * image_tokens * (inner * inner + inner * hidden)

    layer = hidden * (query + 2 * key_value) + query * hidden + 3 * hidden * language.ffn_hidden_size
    language_linear = 2.0 * tokens * language.num_layers * layer + 2.0 * work.heads * hidden * language.vocab_size
    pairs = sum(length * (length + 1) / 2 if causal else length**2 for length in work.segments)
    language_attention = language.num_layers * 4.0 * query * pairs
    return {
        "vision": PartFlops(vision_linear, vision_attention, first=embedding),
        "adapter": PartFlops(adapter, 0.0),
        "language": PartFlops(language_linear, language_attention),
    }


def step_parts(
    architecture: Architecture, work: Work, freeze: Sequence[str], *, causal: bool = True
) -> dict[str, PartFlops]:
    """Forward and backward operations of vision, adapter and language in one step with the named parts frozen."""
    parts = forward_flops(architecture, work, causal=causal)
    step = {}
    before = False  # whether something trained lies before the part (vision -> adapter -> language)
    for name, part in parts.items():
        trained = name not in freeze
        if name == "language":
            before = before or trained  # the embedding table, which is trained with the language model
        linear, attention = part.linear, part.attention
        if trained:
            linear += part.linear  # gradients of the weights
        if trained or before:
            linear += part.linear - (0.0 if before else part.first)  # gradients of the inputs
            attention += 2 * part.attention
        step[name] = PartFlops(linear, attention, part.first)
        before = before or trained
    return step


def step_flops(architecture: Architecture, work: Work, freeze: Sequence[str], *, causal: bool = True) -> float:
    """Forward and backward operations of one step with the named parts frozen."""
    return sum(part.linear + part.attention for part in step_parts(architecture, work, freeze, causal=causal).values())


def recompute_parts(
    architecture: Architecture, work: Work, model: ModelRecipe, *, causal: bool = True
) -> dict[str, PartFlops]:
    """Operations of the second forward pass of recomputed layers; a frozen vision tower has no backward to need one."""
    parts = forward_flops(architecture, work, causal=causal)
    vision, language = parts["vision"], parts["language"]
    modules = model.recompute_modules if model.recompute == "selective" else []
    attention = 1.0 if model.recompute == "full" or "core_attn" in modules else 0.0
    seen = 0.0 if "vision" in model.freeze else 1.0
    head = 2.0 * work.heads * architecture.language.hidden_size * architecture.language.vocab_size
    linear = {"vision": 0.0, "language": 0.0}
    if model.recompute == "full":
        linear = {"vision": vision.linear - vision.first, "language": language.linear - head}
    elif "mlp" in modules:
        one, two = architecture.vision, architecture.language
        rows = sum(work.images) + len(work.images)
        linear = {
            "vision": 2.0 * rows * one.num_layers * 2 * one.hidden_size * one.ffn_hidden_size,
            "language": 2.0 * sum(work.segments) * two.num_layers * 3 * two.hidden_size * two.ffn_hidden_size,
        }
    return {
        "vision": PartFlops(linear["vision"] * seen, attention * seen * vision.attention),
        "adapter": PartFlops(0.0, 0.0),
        "language": PartFlops(linear["language"], attention * language.attention),
    }


def recompute_flops(architecture: Architecture, work: Work, model: ModelRecipe, *, causal: bool = True) -> float:
    """Operations of the second forward pass, of all parts together."""
    parts = recompute_parts(architecture, work, model, causal=causal)
    return sum(part.linear + part.attention for part in parts.values())


# Dense BF16 peak of one device in FLOP/s, from the vendors' data sheets.
GPU_PEAKS = {
    "A800": 312e12,
    "A100": 312e12,
    "H800": 989e12,
    "H100": 989e12,
    "H200": 989e12,
}


def device_peak(device: torch.device, stated_tflops: float) -> tuple[float, str]:
    """Peak FLOP/s that MFU is taken against, and where the figure comes from.

    A recipe's `train.peak_tflops` wins; then the table; a device that is not in it, such as a CPU, is measured once by
    the best of twenty FP32 products of 1024 x 1024 matrices.
    """
    import torch

    if stated_tflops:
        return stated_tflops * 1e12, "train.peak_tflops"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for key, peak in GPU_PEAKS.items():
            if key in name:
                return peak, f"BF16 peak of {name}"
    size = 1024
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best, f"measured FP32 product of {size} x {size} matrices"
