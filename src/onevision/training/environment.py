"""environment.json: versions, commit and hardware of a run."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from onevision.files import write_json
from onevision.machine import commit, memory_gb, processor, version

PACKAGES = ("torch", "megatron-core", "numpy", "h5py", "tokenizers", "pillow", "transformer-engine")


def write_environment(run: Path, device: torch.device, world_size: int, threads: int, peak: tuple[float, str]) -> None:
    """Write environment.json: versions, commit and hardware."""
    write_json(run / "environment.json", environment(device, world_size, threads, peak))


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
