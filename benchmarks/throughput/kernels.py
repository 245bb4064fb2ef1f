"""The kernels of a profiled step: what share of the device's time is products, attention, …, and how much it idles."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The first pattern that is found in a kernel's name decides: attention stands before the products it is made of.
CATEGORIES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("communication", r"nccl|all_?reduce|all_?gather|reduce_?scatter"),
        ("copies", r"^memcpy|^memset"),
        ("attention", r"flash|fmha|attention|attn|sdpa"),
        ("optimizer", r"adam|multi_tensor|foreach|l2norm"),
        ("GEMM", r"gemm|gemv|nvjet|cutlass|cublas|xmma|splitk|matmul|addmm|::b?mm$|::linear"),
        ("loss", r"cross_?entropy|log_?softmax|nll_loss|chunked_loss"),
        (
            "norm+elementwise",
            r"elementwise|norm|softmax|silu|swiglu|gelu|rotary|rope|triton|index|gather|scatter|cat|copy|fill|reduce"
            r"|add|mul|div|sub|sum|where|pow|sqrt|zero|cumsum|clamp|compare|nonzero|sort|arange|bincount|cast",
        ),
    )
)


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel; microseconds."""

    name: str
    start: float
    duration: float


def category(name: str) -> str:
    """What kind of work a kernel does, by its name."""
    return next((kind for kind, pattern in CATEGORIES if pattern.search(name)), "other")


def read_kernels(trace: Path) -> list[Kernel]:
    """The kernels, copies and fills on the GPU in a trace of torch.profiler (.json or .json.gz)."""
    content = trace.read_bytes()
    if trace.suffix == ".gz":
        content = gzip.decompress(content)
    events: list[dict[str, Any]] = json.loads(content)["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    return [
        Kernel(event["name"], float(event["ts"]), float(event["dur"])) for event in events if event.get("cat") in kinds
    ]


def summary(kernels: Sequence[Kernel], seconds: float, steps: int, top: int = 15) -> dict[str, Any]:
    """Shares of `seconds`, which `steps` profiled steps took, by category, with what remains as idle; and the `top`
    kernels. Kernels that run at the same time are counted each; `overlap` is the share that is counted twice.
    """
    by_category: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        by_category[category(kernel.name)] += kernel.duration
        by_name[kernel.name].append(kernel.duration)
    whole, busy = seconds * 1e6, union(kernels)
    longest = sorted(by_name, key=lambda name: -sum(by_name[name]))[:top]
    return {
        "steps": steps,
        "step_seconds": seconds / steps,
        "kernels_per_step": len(kernels) / steps,
        "shares": {name: value / whole for name, value in sorted(by_category.items(), key=lambda item: -item[1])}
        | {"idle": 1 - busy / whole},
        "overlap": (sum(by_category.values()) - busy) / whole,
        "top": [
            {
                "name": name[:160],
                "category": category(name),
                "share": sum(by_name[name]) / whole,
                "calls_per_step": len(by_name[name]) / steps,
                "mean_microseconds": sum(by_name[name]) / len(by_name[name]),
            }
            for name in longest
        ],
    }


def union(kernels: Sequence[Kernel]) -> float:
    """Microseconds in which at least one kernel ran."""
    busy, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        stop = kernel.start + kernel.duration
        busy += max(0.0, stop - max(end, kernel.start))
        end = max(end, stop)
    return busy
