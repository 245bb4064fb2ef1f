"""Section 1: the machine, its versions, and the ceilings that everything else is held against."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.checks import Findings, say
from onevision.machine import commit, memory_gb, processor, version

PACKAGES = (
    "torch", "triton", "megatron-core", "transformer-engine", "apex", "flash-attn", "flash-attn-4",
    "nvidia-dali-cuda130", "transformers", "liger-kernel", "numpy", "numba", "simplejpeg",
)
ABSENCES = {  # what is missed where a package is not there
    "transformer-engine": "FP8, and the comparison with its BF16 modules",
    "apex": "its fused optimizer and norms",
    "nvidia-dali-cuda130": "its decoding on the device",
    "flash-attn": "the comparison with its attention",
    "flash-attn-4": "attention made for Hopper (model.attention=flash_attn_4)",
    "transformers": "the peer of the same model",
    "liger-kernel": "the peer with fused kernels",
}
QUERIES = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "power.limit",
    "ecc.mode.current", "mig.mode.current",
)
COPY_BYTES = 4 << 30
SIDE = 8192
DISK_BYTES = 1 << 30


def check(findings: Findings, scratch: Path) -> None:
    """Facts and ceilings of this machine and its first GPU."""
    facts = findings.facts
    facts["hardware"] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": memory_gb(),
        "system": platform.platform(),
    }
    facts["versions"] = {"python": platform.python_version(), "cuda": torch.version.cuda} | {
        name: found for name in PACKAGES if (found := version(name))
    }
    facts["commit"] = commit()
    facts["nvcc"] = _said(["nvcc", "--version"]).rpartition("release ")[2].partition(",")[0]
    findings.save()
    for name, missed in ABSENCES.items():
        if name not in facts["versions"]:
            findings.unchecked(name, f"not installed: {missed}")
    _disk(findings, scratch)
    if not torch.cuda.is_available():
        findings.unchecked("GPU", "there is none here")
        return
    _gpu(findings)
    say(f"{facts['gpu']['name']}, driver {facts['gpu'].get('driver_version', 'unknown')}")
    _ceilings(findings)
    facts["gpu"]["after"] = _queried()
    findings.save()


def _said(command: list[str]) -> str:
    """What a program prints; nothing where it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _queried() -> dict[str, str]:
    said = _said(["nvidia-smi", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader", "--id=0"])
    return dict(zip(QUERIES, map(str.strip, said.split(",")), strict=False)) if said.strip() else {}


def _gpu(findings: Findings) -> None:
    properties = torch.cuda.get_device_properties(0)
    findings.facts["gpu"] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "count": torch.cuda.device_count(),
        **_queried(),
    }
    findings.save()


def _disk(findings: Findings, scratch: Path) -> None:
    block = os.urandom(16 << 20)
    path = scratch / "disk"
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(DISK_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    findings.fact("disk: written and flushed", DISK_BYTES / (time.perf_counter() - began) / 1e9, "GB/s")
    path.unlink()


def _ceilings(findings: Findings) -> None:
    bandwidth, link = copy_speed(), host_speed()
    findings.fact("copy on the device", bandwidth, "GB/s", "bytes read and written")
    findings.fact("copy from pinned host memory", link, "GB/s")
    gemm = product_speed(SIDE, SIDE, SIDE, torch.bfloat16)
    findings.fact(f"BF16 product of {SIDE}^3", gemm, "TFLOP/s", "random data, median")
    findings.fact("FP32 product of 4096^3", product_speed(4096, 4096, 4096, torch.float32), "TFLOP/s", "no TF32")
    findings.facts["ceilings"] = {"copy_gb_s": bandwidth, "host_link_gb_s": link, "bf16_tflops": gemm}
    findings.save()


def median_seconds(call: Callable[[], object], times: int = 20, warm: int = 5) -> float:
    """Median time of a call's work on the GPU, by its own clock."""
    for _ in range(warm):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
    for start, end in marks:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in marks)[times // 2] / 1e3


def copy_speed() -> float:
    """GB/s of a copy within the GPU's memory, bytes read and written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median_seconds(lambda: target.copy_(source)) / 1e9


def host_speed() -> float:
    """GB/s of a copy from pinned host memory."""
    source = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device="cuda")
    return len(source) / median_seconds(lambda: target.copy_(source, non_blocking=True)) / 1e9


def product_speed(rows: int, columns: int, inner: int, dtype: torch.dtype) -> float:
    """TFLOP/s of [rows, inner] @ [columns, inner].T on random data."""
    left = torch.randn(rows, inner, device="cuda", dtype=dtype)
    right = torch.randn(columns, inner, device="cuda", dtype=dtype)
    out = torch.empty(rows, columns, device="cuda", dtype=dtype)
    return 2.0 * rows * columns * inner / median_seconds(lambda: torch.mm(left, right.t(), out=out)) / 1e12
