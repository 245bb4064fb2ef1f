"""environment.json: versions, commit and hardware of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from onevision.files import write_json
from onevision.machine import commit, memory_gb, processor, version
from onevision.model.backend import backend_facts, resolve_attention, resolve_backend
from onevision.recipe import Recipe
from onevision.training.parts import training_attention

GPU_PACKAGES = ("triton", "transformer-engine", "flash-attn", "flash-attn-4", "apex")
PACKAGES = ("torch", "megatron-core", "numpy", "h5py", "tokenizers", "pillow", *GPU_PACKAGES)


def write_environment(
    run: Path,
    device: torch.device,
    world_size: int,
    threads: int,
    peak: tuple[float, str],
    facts: Sequence[str] = (),
) -> None:
    """Write environment.json: versions, commit, hardware, and the `facts` that `training_facts` tells."""
    write_json(
        run / "environment.json", environment(device, world_size, threads, peak) | {"training": list(facts)}
    )


def training_facts(recipe: Recipe, device: torch.device, optimizer: Any) -> list[str]:
    """Lines that say which backend, precision and optimizer train here, and what is absent that would be faster."""
    backend = resolve_backend(recipe.model.backend, device)
    facts = backend_facts(backend, resolve_attention(training_attention(recipe), backend, device), device)
    return [*facts, _precision_fact(recipe), *_adam_facts(optimizer, device)]


def _precision_fact(recipe: Recipe) -> str:
    train = recipe.train
    if train.precision == "fp8":
        kept = f", first and last {train.fp8_bf16_layers} layers in BF16" if train.fp8_bf16_layers else ""
        return f"precision: BF16, products in FP8 with {train.fp8_recipe} scales{kept}"
    if train.precision == "fp32":
        return f"precision: FP32, products in {'TF32' if train.tf32 else 'FP32'}"
    return "precision: BF16"


def _adam_facts(optimizer: Any, device: torch.device) -> list[str]:
    """Whose Adam it is: Transformer Engine's or apex's, each one kernel for all tensors, or ours on PyTorch's."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    homes = sorted({type(part.optimizer).__module__.partition(".")[0] for part in parts})
    names = {"transformer_engine": "Transformer Engine's", "apex": "apex's", "onevision": "PyTorch's"}
    facts = [f"optimizer: {names.get(home, home)} Adam" for home in homes]
    if device.type == "cuda" and not {"transformer_engine", "apex"} & set(homes):
        facts.append("absent: fused Adam of Transformer Engine or apex")
    return facts


def environment(device: torch.device, world_size: int, threads: int, peak: tuple[float, str]) -> dict[str, Any]:
    """Versions, commit and hardware of this process."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version(name))},
        "commit": commit(),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": memory_gb(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "world_size": world_size,
        "threads": threads,
        "peak_tflops": round(peak[0] / 1e12, 3),
        "peak_source": peak[1],
    }
