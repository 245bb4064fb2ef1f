"""Compiles the Triton kernels for GPUs that need not be there, at the shapes of the 1.7b model, and reads what each
takes of a GPU. It needs Triton (part of PyTorch's CUDA builds; `pip install triton` beside a CPU build), which brings
its own assembler, and no GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from onevision.model import triton_attention, triton_kernels

ARCHITECTURES = (80, 90)  # A800 and H100
_ROWS, _EPS = "i32", "fp32"


@dataclass(frozen=True)
class Compiled:
    """What the assembler and the machine code say of a kernel."""

    name: str
    case: str
    architecture: int
    registers: int
    stack: int  # bytes of local memory a thread: what is spilled, and 32 of the sine of angles above 1e5, not reached
    widest_load: int  # bytes of the widest load and store of global memory by one thread
    widest_store: int


def _cases() -> Iterator[tuple[Any, str, dict[str, Any], int]]:
    """Kernel, case, what its arguments are, warps."""
    bf16, fp32 = "*bf16", "*fp32"
    tile = triton_kernels.TILE
    norms = (("language", 2048, 1, False), ("vision", 1024, 1, True), ("head", 128, 16, False))
    for case, width, heads, layer in norms:
        shape = {"heads": heads, "N": width, "BLOCK": width, "ROWS": max(1, tile // width), "LAYER": layer}
        strides = {"stride": "i32", "head_stride": "i32"}
        warps = 8 if width > 1024 else 4
        joined = {"ADD": heads == 1, "BIASED": layer}
        forward = dict.fromkeys(("x", "weight", "bias", "out", "added", "residual", "total"), bf16)
        forward |= {"mean": fp32, "scale": fp32}
        yield (
            triton_kernels._norm_forward, case,
            forward | {"rows": _ROWS, "eps": _EPS} | strides | shape | joined, warps,
        )
        joined = {"LEARNED": True, "PASSED": heads == 1, "BIASED": layer}
        backward = dict.fromkeys(("grad", "passed", "x", "weight", "grad_x"), bf16)
        backward |= dict.fromkeys(("mean", "scale", "weight_parts", "bias_parts", "added_parts"), fp32)
        yield (
            triton_kernels._norm_backward, case,
            backward | {"rows": _ROWS} | strides | shape | joined, warps,
        )
    of_swiglu = {"total": "i32", "N": 6144, "BLOCK": 1024}
    yield triton_kernels._swiglu_forward, "language", {"x": bf16, "out": bf16} | of_swiglu, 4
    yield triton_kernels._swiglu_backward, "language", {"grad": bf16, "x": bf16, "grad_x": bf16} | of_swiglu, 4
    of_gelu = {"x": bf16, "bias": bf16, "N": 4096}
    yield triton_kernels._bias_gelu_forward, "vision", of_gelu | {"out": bf16, "total": "i32", "BLOCK": 1024}, 4
    yield (
        triton_kernels._bias_gelu_backward, "vision",
        of_gelu | {"grad": bf16, "grad_x": bf16, "parts": fp32, "rows": _ROWS, "ROWS": 8, "BLOCK": 256}, 4,
    )
    added = dict.fromkeys(("x", "bias", "residual", "out"), bf16)
    yield triton_kernels._bias_add, "vision", added | {"total": "i32", "N": 1024, "BLOCK": 1024}, 4
    for case, normed, groups, heads, width in (("language", True, 8, 2, 128), ("vision", False, 16, 1, 64)):
        shape = {"G": groups, "R": heads, "D": width, "HALF": width // 2, "ROWS": 2048 // width, "NORMED": normed}
        pointers = dict.fromkeys(("mixed", "q_weight", "k_weight"), bf16) | {"angles": fp32, "tokens": "i32"}
        yield (
            triton_attention._attention_inputs, case,
            pointers | {"q": bf16, "k": bf16, "bias": bf16, "eps": _EPS} | shape, 4,
        )
        grads = dict.fromkeys(("grad_q", "grad_k", "grad_v", "grad_mixed"), bf16) | {"parts": fp32, "eps": _EPS}
        yield triton_attention._attention_inputs_backward, case, pointers | grads | shape, 4


def compiled() -> Iterator[Compiled]:
    """Every kernel, compiled for every GPU of the suite (half a minute of a core, once: Triton keeps what it made)."""
    for kernel, case, arguments, warps in _cases():
        names = kernel.arg_names
        signature = {name: "constexpr" if not isinstance(arguments[name], str) else arguments[name] for name in names}
        constants = {(names.index(name),): value for name, value in arguments.items() if not isinstance(value, str)}
        # As at run time: addresses and sizes are multiples of 16.
        aligned = [name for name in names if signature[name].startswith(("*", "i")) and name not in ("rows", "tokens")]
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        for architecture in ARCHITECTURES:
            source = ASTSource(kernel, signature, constants, attributes)
            target = GPUTarget("cuda", architecture, 32)
            made = triton.compile(source, target=target, options={"num_warps": warps})
            registers, stack = _resources(made.asm["cubin"])
            loads, stores = (_widest(made.asm["ptx"], word) for word in ("ld", "st"))
            yield Compiled(kernel.__name__.lstrip("_"), case, architecture, registers, stack, loads, stores)


def _resources(cubin: bytes) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", text))
    return int(found["REG"]), int(found["STACK"])


def _widest(ptx: str, word: str) -> int:
    sizes = re.findall(rf"\b{word}\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfsu](\d+)", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in sizes), default=0)
