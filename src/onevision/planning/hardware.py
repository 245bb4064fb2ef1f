"""What a GPU, its node and its network can do. Every figure stands here with its unit and where it comes from.

A figure whose source begins with "assumed" was measured by nobody for this suite. `onevision.planning.sensitivity` says
how much a prediction hangs on each of them. A calibration file replaces figures by measured ones:

    {"gpu": "h100", "date": "2026-01-31", "measured": {"gemm": 0.71, "attention": 0.45, "memory_use": 0.88}}

`gpu` is a name of GPUS, `measured` has names of the fields of Gpu in the units given there; other keys, such as
hardware and versions, are for whoever reads the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from onevision.errors import InputError
from onevision.files import read_json
from onevision.training.flops import GPU_PEAKS

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Figure:
    """A number, its unit ("share": of what is possible, at most 1), and its source."""

    value: float
    unit: str
    source: str

    @property
    def assumed(self) -> bool:
        """Whether nobody measured or published it."""
        return self.source.startswith("assumed")


@dataclass(frozen=True)
class Gpu:
    """A GPU in a node of eight. A speed that is reached is a bandwidth times its share."""

    name: str
    peak: Figure  # dense BF16
    memory: Figure  # what nvidia-smi says, as in sbatch/clusters
    memory_bandwidth: Figure
    nvlink: Figure  # of one GPU to the others of its node, in one direction
    network: Figure  # of one node to the others, in one direction
    host_link: Figure  # from the host's memory to one GPU
    gemm: Figure  # share of the peak that the language model's products reach
    vision_gemm: Figure  # those of the vision tower and the adapter, whose matrices are smaller
    attention: Figure  # of the peak: causal attention within segments, forward and backward
    vision_attention: Figure  # within images, no mask
    memory_use: Figure  # of the memory's bandwidth: norms, activations, rotary embedding, loss, optimizer
    nvlink_use: Figure
    network_use: Figure
    overlap: Figure  # of the data-parallel communication that is hidden behind the backward pass
    waiting: Figure  # of a step's computation that ranks wait for the slowest one
    decode: Figure  # images that a core turns into patches

    def figures(self) -> dict[str, Figure]:
        """The figures by their names."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "name"}


SHARE = "share"
_SHEET = "data sheet"
_DECODE = Figure(150, "images/s", "measured on one core of an AMD EPYC: benchmarks/results/images.json")
_OVERLAP = Figure(0.0, SHARE, "none in the released scripts; what performance.overlap_… hide is not measured")
_WAITING = Figure(0.05, SHARE, "assumed; dealing alone leaves 3 % with packs bounded in cost: benchmarks/results")
_NVLINK_USE = Figure(0.75, SHARE, "assumed")
_NETWORK_USE = Figure(0.80, SHARE, "assumed; what a health check asks of good nodes: sbatch/clusters")
_MEMORY_USE = Figure(0.80, SHARE, "assumed; kernels that only stream reach 0.85 to 0.9")


def _ampere(name: str, memory: float, nvlink: float) -> Gpu:
    return Gpu(
        name,
        peak=Figure(GPU_PEAKS[name.upper()] / 1e12, "TFLOP/s", _SHEET),
        memory=Figure(memory, "GB", "nvidia-smi: 81920 MiB"),
        memory_bandwidth=Figure(2000, "GB/s", _SHEET),
        nvlink=Figure(nvlink, "GB/s", f"{_SHEET}: {2 * nvlink:g} GB/s in both directions"),
        network=Figure(100, "GB/s", "assumed: 4 ports of HDR (25 GB/s) a node"),
        host_link=Figure(20, "GB/s", "assumed; PCIe 4.0 x16 has 32"),
        gemm=Figure(0.70, SHARE, "assumed; whole steps of a 7B model without vision reach 0.5 (fms-fsdp, 128 A100)"),
        vision_gemm=Figure(0.55, SHARE, "assumed: width 1,024"),
        attention=Figure(
            0.40, SHARE, "assumed; FlashAttention-2's paper has 0.50 to 0.73 on an A100, at longer segments"
        ),
        vision_attention=Figure(0.50, SHARE, "assumed; the lower end of FlashAttention-2's paper"),
        memory_use=_MEMORY_USE,
        nvlink_use=_NVLINK_USE,
        network_use=_NETWORK_USE,
        overlap=_OVERLAP,
        waiting=_WAITING,
        decode=_DECODE,
    )


def _hopper(name: str, memory: Figure, bandwidth: float) -> Gpu:
    return Gpu(
        name,
        peak=Figure(GPU_PEAKS[name.upper()] / 1e12, "TFLOP/s", _SHEET),
        memory=memory,
        memory_bandwidth=Figure(bandwidth, "GB/s", _SHEET),
        nvlink=Figure(450, "GB/s", f"{_SHEET}: 900 GB/s in both directions"),
        network=Figure(400, "GB/s", "assumed: 8 ports of NDR (50 GB/s) a node"),
        host_link=Figure(40, "GB/s", "assumed; PCIe 5.0 x16 has 64"),
        gemm=Figure(0.60, SHARE, "assumed; whole steps of language models reach 0.41 to 0.48 (Megatron-LM)"),
        vision_gemm=Figure(0.45, SHARE, "assumed: width 1,024"),
        attention=Figure(0.30, SHARE, "assumed: short segments"),
        vision_attention=Figure(0.35, SHARE, "assumed"),
        memory_use=_MEMORY_USE,
        nvlink_use=_NVLINK_USE,
        network_use=_NETWORK_USE,
        overlap=_OVERLAP,
        waiting=_WAITING,
        decode=_DECODE,
    )


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _ampere("a800", 85.9, 200),
        _ampere("a100", 85.9, 300),
        _hopper("h100", Figure(85.5, "GB", "nvidia-smi: 81559 MiB"), 3350),
        _hopper("h200", Figure(150.7, "GB", "nvidia-smi: 143771 MiB"), 4800),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        InputError: there is none.
    """
    if name not in GPUS:
        raise InputError(f"gpu={name} is not one of {', '.join(GPUS)}")
    return GPUS[name]


def with_figures(gpu: Gpu, values: Mapping[str, float], source: str) -> Gpu:
    """The GPU with other values of some figures, and their source.

    Raises:
        InputError: an unknown name (with the nearest), or a value that its unit does not allow.
    """
    figures, changed = gpu.figures(), {}
    for name, value in values.items():
        if name not in figures:
            near = difflib.get_close_matches(name, figures, n=1, cutoff=0.0)[0]
            raise InputError(f"{source}: unknown figure {name!r}; the nearest is {near!r}")
        old, number = figures[name], isinstance(value, int | float) and not isinstance(value, bool)
        least_is_zero = name in ("overlap", "waiting")
        if not number or not 0 <= value < float("inf") or (value == 0 and not least_is_zero):
            raise InputError(f"{source}: {name}={value!r} is not a number of {old.unit} above 0")
        if old.unit == SHARE and value > 1:
            raise InputError(f"{source}: {name}={value} is a share of what is possible and must be at most 1")
        changed[name] = Figure(float(value), old.unit, source)
    return replace(gpu, **changed)  # type: ignore[arg-type]  # names are those of figures


def calibrated(gpu: Gpu, path: Path) -> Gpu:
    """The GPU with the measured figures of a calibration file.

    Raises:
        InputError: the file is missing or not of the format at the head of this module, or is of another GPU.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("measured"), dict):
        raise InputError(f"{path} is not a calibration: it needs an object `measured` of figures")
    if content.get("gpu") != gpu.name:
        raise InputError(f"{path} was measured on gpu={content.get('gpu')} and the plan is for gpu={gpu.name}")
    return with_figures(gpu, content["measured"], f"measured {content.get('date', 'some day')}: {path}")
