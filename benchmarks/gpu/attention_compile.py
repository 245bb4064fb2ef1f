"""Compiles the kernels of `model.attention=flash_attn_4` for Hopper, on a machine that need not have a GPU.

    python -m benchmarks.gpu.attention_compile [model=1.7b] [out=runs/attention-kernels]

It wants the packages of envs/flash-attn-4.lock, and Triton, which they import. For vision and language, forward and
backward, for packs of few and of more than 256 segments, it prints the seconds; and of each kernel its registers a
thread, its stack and its local memory (where spills go), where `cuobjdump` is found: in CUDA, and in Triton's package.

`out` is left as a folder of compiled kernels, by the package's own cache. A training that is started with

    FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 FLASH_ATTENTION_CUTE_DSL_CACHE_DIR=<out>

takes them from there and compiles nothing, with the same Python version and the same versions of these packages: for
many ranks that start together, and where GPU time is short. They give the results that kernels compiled anew give.
The deterministic backward pass is not among them: a PyTorch without CUDA cannot describe its semaphores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path
from typing import Any

from onevision.errors import InputError, OneVisionError
from onevision.machine import version
from onevision.model.presets import PRESETS

# What the package asks for in the place of a GPU: the family of kernels, the compiler's target, the SMs of an H100.
TARGET = {
    "FLASH_ATTENTION_ARCH": "sm_90",
    "CUTE_DSL_ARCH": "sm_90a",
    "FLASH_ATTENTION_NUM_SMS": "132",
}
ROWS, LONGEST = 8192, 2048
SEGMENTS = {"few": 12, "many": 300}
_SYMBOL = re.compile(r"Function (?:kernel_cutlass_kernel_)?(?:flash_attncute)?(\w+?)(?:_object\w*)?:")
_USE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def compile_kernels(model: str, out: Path) -> None:
    """Compile, print, and leave the kernels in `out`.

    Raises:
        InputError: an unknown preset, or a package is missing.
    """
    if model not in PRESETS:
        raise InputError(f"model={model} is not one of {', '.join(PRESETS)}")
    for name in ("flash-attn-4", "nvidia-cutlass-dsl", "quack-kernels", "triton"):
        if not version(name):
            raise InputError(f"{name} is not installed: see envs/flash-attn-4.lock")
    out.mkdir(parents=True, exist_ok=True)
    language, vision = PRESETS[model].language, PRESETS[model].vision
    with tempfile.TemporaryDirectory() as dump:
        os.environ.update(TARGET)  # read when the package is imported
        os.environ.update(
            {
                "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
                "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(out.resolve()),
                "CUTE_DSL_KEEP": "cubin",
                "CUTE_DSL_DUMP_DIR": dump,
            }
        )
        for what, sizes, causal in (
            ("vision", (vision.num_attention_heads, vision.num_attention_heads, vision.head_dim), False),
            ("language", (language.num_attention_heads, language.num_query_groups, language.head_dim), True),
        ):
            for count, segments in SEGMENTS.items():
                forward, backward = _compile(sizes, segments, causal)
                print(f"{what}, {count} segments: forward {forward:.1f} s, backward {backward:.1f} s", flush=True)
                for line in _uses(Path(dump)):
                    print(f"    {line}", flush=True)
    kernels = list(out.rglob("*.o"))
    print(f"{out}: {len(kernels)} compiled functions, {sum(kernel.stat().st_size for kernel in kernels) / 1e6:.1f} MB")


def _compile(sizes: tuple[int, int, int], segments: int, causal: bool) -> tuple[float, float]:
    """Seconds for the forward and the backward pass that `onevision.model.flash_attn_4` calls."""
    import torch
    from flash_attn.cute import interface
    from torch._subclasses.fake_tensor import FakeTensorMode

    heads, groups, channels = sizes
    began = time.perf_counter()
    with FakeTensorMode():
        # The passes and not the function of autograd, which a PyTorch without CUDA cannot make for tensors on a GPU.
        query, key, value = (
            torch.empty(ROWS, count, channels, dtype=torch.bfloat16, device="cuda") for count in (heads, groups, groups)
        )
        bounds = torch.empty(segments + 1, dtype=torch.int32, device="cuda")
        common: dict[str, Any] = {
            "cu_seqlens_q": bounds,
            "cu_seqlens_k": bounds,
            "max_seqlen_q": LONGEST,
            "max_seqlen_k": LONGEST,
            "softmax_scale": channels**-0.5,
            "causal": causal,
        }
        output, logsumexp, *_ = interface._flash_attn_fwd(query, key, value, return_lse=True, **common)
        between = time.perf_counter()
        interface._flash_attn_bwd(query, key, value, output, torch.empty_like(output), logsumexp, **common)
    return between - began, time.perf_counter() - between


def _uses(folder: Path) -> list[str]:
    """Registers, stack and local memory of the kernels in a folder of cubins, a line each.

    The cubins are removed, as those of the next sizes have the same names. (Of the two that end a backward pass, which
    have one name too, it is the last.)
    """
    program = shutil.which("cuobjdump")
    spec = util.find_spec("triton")
    if program is None and spec is not None and spec.origin:
        own = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        program = str(own) if own.exists() else None
    if program is None:
        return ["registers and spills: not told, cuobjdump is not installed"]
    lines = set()
    for cubin in folder.glob("*.cubin"):
        said = subprocess.run([program, "-res-usage", str(cubin)], capture_output=True, text=True, check=True)
        found = zip(_SYMBOL.findall(said.stdout), _USE.findall(said.stdout), strict=True)
        for name, (registers, stack, local) in found:
            cubin.unlink(missing_ok=True)
            lines.add(f"{name[:80]}: {registers} registers a thread, {stack} bytes of stack, {local} of local memory")
    return sorted(lines)


def main(arguments: list[str]) -> int:
    """Compile, as the arguments say."""
    own = {"model": "1.7b", "out": "runs/attention-kernels"}
    own |= dict(text.split("=", 1) for text in arguments if "=" in text)
    try:
        compile_kernels(own["model"], Path(own["out"]))
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
