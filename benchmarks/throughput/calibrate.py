"""Measures what `make plan` assumes of a GPU, with the shapes and the kernels of this model, in a few seconds.

    python -m benchmarks.throughput.calibrate [model=1.7b] [attention=torch] [out=calibration.json]

    gemm              the products of a language layer, forward and both gradients, 8,192 tokens, of the peak
    vision_gemm       those of a layer of the vision tower
    attention         causal, within segments of the mean sample, forward and backward; operations counted causal
    vision_attention  within images of the mean sample
                      (both are those of `attention`; with flash_attn_4 the TFLOP/s of PyTorch's lie beside)
    memory_use        a residual addition over the language model's states, of the memory's bandwidth
    host_link         a copy of patches from pinned memory

The file has the format of onevision.planning.hardware. A GPU that is not in its table gives no file.
"""

from __future__ import annotations

import datetime
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onevision.errors import InputError, OneVisionError
from onevision.files import write_json
from onevision.machine import version
from onevision.model import flash_attn_4
from onevision.model.attention import Attend, flash, segment_params
from onevision.model.presets import PATCH_VALUES, PRESETS, Architecture
from onevision.planning.hardware import GPUS
from onevision.planning.published import SAMPLE_PATCHES, SAMPLE_TOKENS

ATTENTIONS: dict[str, Attend] = {"torch": flash, flash_attn_4.NAME: flash_attn_4.flash_attn_4}
TOKENS = 8192
_ROUNDS = 10


def calibration(model: str, attention: str = "torch") -> dict[str, Any]:
    """The content of a calibration file, measured on GPU 0 with the shapes of a preset; its attention is that of
    `attention`, a key of ATTENTIONS, or auto, which is torch.

    Raises:
        InputError: there is no GPU, it is not in the table of onevision.planning.hardware, or it lacks the attention.
    """
    attention = "torch" if attention == "auto" else attention
    if attention not in ATTENTIONS:
        raise InputError(f"attention={attention} is not one of {', '.join(ATTENTIONS)}")
    if not torch.cuda.is_available():
        raise InputError("a calibration needs a GPU, and this machine has none: run it on one")
    name = torch.cuda.get_device_name(0)
    gpu = next((gpu for gpu in GPUS.values() if gpu.name.upper() in name.upper()), None)
    if gpu is None:
        raise InputError(f"{name} is not one of {', '.join(GPUS)}: make plan knows no other GPU")
    problem = flash_attn_4.problem(torch.device("cuda", 0)) if attention == flash_attn_4.NAME else None
    if problem:
        raise InputError(f"attention={attention}: {problem}: use attention=torch")
    architecture = PRESETS[model]
    language, vision = architecture.language, architecture.vision
    query, key = language.num_attention_heads * language.head_dim, language.num_query_groups * language.head_dim
    hidden, ffn = language.hidden_size, language.ffn_hidden_size
    images = round(TOKENS / SAMPLE_TOKENS)
    rows = images * round(SAMPLE_PATCHES + 1)
    width = vision.hidden_size
    products, shapes = [], {}
    for figure, count, sizes in (
        ("gemm", TOKENS, [(hidden, query + 2 * key), (query, hidden), (hidden, 2 * ffn), (ffn, hidden)]),
        (
            "vision_gemm",
            rows,
            [(width, 3 * width), (width, width), (width, vision.ffn_hidden_size), (vision.ffn_hidden_size, width)],
        ),
    ):
        flops = seconds = 0.0
        for inputs, outputs in sizes:
            work, spent = _products(count, inputs, outputs)
            shapes[f"{figure}: {count} x {inputs} x {outputs}"] = work / spent / 1e12
            flops, seconds = flops + work, seconds + spent
        products.append((figure, flops / seconds / (gpu.peak.value * 1e12)))
    measured = dict(products)
    rates = {
        name: _attention_rates(attend, architecture, images)
        for name, attend in ATTENTIONS.items()
        if name in ("torch", attention)
    }
    measured |= {figure: rate / gpu.peak.value for figure, rate in rates[attention].items()}
    states = [torch.randn(TOKENS, hidden, device="cuda", dtype=torch.bfloat16) for _ in range(24)]
    triples = states[::3], states[1::3], states[2::3]
    moved = 3 * states[0].numel() * states[0].element_size() * (len(states) // 3)
    spent = _seconds(lambda: [torch.add(a, b, out=c) for a, b, c in zip(*triples, strict=True)])
    measured["memory_use"] = moved / spent / (gpu.memory_bandwidth.value * 1e9)
    patches = torch.empty(rows, PATCH_VALUES).pin_memory()
    target = torch.empty_like(patches, device="cuda")
    measured["host_link"] = patches.nbytes / _seconds(lambda: target.copy_(patches, non_blocking=True)) / 1e9
    shares = {key: min(value, 1.0) if key != "host_link" else value for key, value in measured.items()}
    return {
        "gpu": gpu.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": name,
        "model": model,
        "versions": {package: found for package in ("torch", "triton", "flash-attn-4") if (found := version(package))},
        "tflops_by_shape": shapes,
        "attention": attention,
        "attention_tflops": rates,
        "measured": {key: round(value, 4) for key, value in shares.items()},
    }


def _products(rows: int, inputs: int, outputs: int) -> tuple[float, float]:
    """Operations and seconds of a linear layer: output, gradient of the input, gradient of the weight."""
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)

    def layer() -> tuple[Tensor, Tensor, Tensor]:
        return x @ weight.t(), gradient @ weight, gradient.t() @ x

    return 6.0 * rows * inputs * outputs, _seconds(layer)


def _attention_rates(attend: Attend, architecture: Architecture, images: int) -> dict[str, float]:
    """TFLOP/s of an attention by figure, on `images` samples of the mean length."""
    language, vision = architecture.language, architecture.vision
    return {
        "attention": _attention(
            attend,
            [round(SAMPLE_TOKENS)] * images,
            (language.num_attention_heads, language.num_query_groups, language.head_dim),
            causal=True,
        ),
        "vision_attention": _attention(
            attend,
            [round(SAMPLE_PATCHES + 1)] * images,
            (vision.num_attention_heads, vision.num_attention_heads, vision.head_dim),
            causal=False,
        ),
    }


def _attention(attend: Attend, lengths: list[int], sizes: tuple[int, int, int], *, causal: bool) -> float:
    """TFLOP/s with so many heads, groups and channels; the backward pass has twice the operations of the forward pass,
    as in training/flops.py."""
    heads, groups, channels = sizes
    total = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    params = segment_params(bounds, torch.device("cuda", 0))
    q, k, v = (
        torch.randn(total, count, channels, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for count in (heads, groups, groups)
    )
    gradient = torch.randn(total, heads * channels, device="cuda", dtype=torch.bfloat16)

    def both() -> None:  # gradients are not added to those of the call before
        torch.autograd.grad(attend(q, k, v, params, causal, channels**-0.5), (q, k, v), gradient)

    pairs = sum(length * (length + 1) / 2 if causal else length**2 for length in lengths)
    return 3 * 4.0 * heads * channels * pairs / _seconds(both) / 1e12


def _seconds(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU, the queue being full."""
    for _ in range(3):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_ROUNDS + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(stop) for start, stop in zip(events, events[1:], strict=False)]
    return statistics.median(times) / 1e3


def main(arguments: list[str]) -> int:
    """Measure, write and print."""
    own = {"model": "1.7b", "attention": "torch", "out": ""} | dict(
        text.split("=", 1) for text in arguments if "=" in text
    )
    try:
        content = calibration(own["model"], own["attention"])
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    path = own["out"] or f"benchmarks/results/calibration-{content['gpu']}.json"
    write_json(path, content)
    for figure, value in content["measured"].items():
        print(f"{figure}: {value:g}")
    for name, rates in content["attention_tflops"].items():
        print(f"{name}: " + ", ".join(f"{figure} {rate:.0f} TFLOP/s" for figure, rate in rates.items()))
    print(f"{path}: for make plan CALIBRATION={path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
