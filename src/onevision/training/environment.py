"""environment.json: versions, commit and hardware of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from onevision.files import write_json

PACKAGES = ("torch", "megatron-core", "numpy", "h5py", "tokenizers", "pillow", "transformer-engine")


def write_environment(run: Path, device: torch.device, world_size: int, threads: int, peak: tuple[float, str]) -> None:
    """Write environment.json: versions, commit and hardware."""
    write_json(run / "environment.json", environment(device, world_size, threads, peak))


def environment(device: torch.device, world_size: int, threads: int, peak: tuple[float, str]) -> dict[str, Any]:
    """Versions, commit and hardware of this process."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "world_size": world_size,
        "threads": threads,
        "peak_tflops": round(peak[0] / 1e12, 3),
        "peak_source": peak[1],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
