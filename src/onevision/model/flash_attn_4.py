"""Attention by the package flash-attn-4, whose kernels are made for Hopper: `model.attention=flash_attn_4`.

Its kernels are Python (CuTe DSL), compiled for the GPU when they are called first: some 15 s for the four that training
wants, forward and backward of vision and language. On sm_90 (its `flash_attn/cute/interface.py`, 4.0.0b36) it has
forward and backward for FP16 and BF16, segments of any lengths, fewer heads of keys than of queries, heads of 8 to 256
channels, a causal mask in which the last query sees the last key, and a backward pass that gives the same bits twice.
It has no forward pass in which several blocks share the keys of few queries, which generation would want.

Compiled for sm_90a without a GPU (`benchmarks/gpu/attention_compile.py`); **not yet run on one**.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onevision.machine import version

if TYPE_CHECKING:
    from onevision.model.attention import SegmentParams

NAME = "flash_attn_4"
VERSION = "4.0.0b36"  # a pre-release, whose interface changes between versions: this one was read and compiled
LOCK = "envs/flash-attn-4.lock"
_NEEDS = (  # what it imports on the way
    *("nvidia-cutlass-dsl", "nvidia-cutlass-dsl-libs-base", "nvidia-cutlass-dsl-libs-core"),
    *("quack-kernels", "apache-tvm-ffi", "einops", "triton"),
)
_COMPILERS = ("nvidia-cutlass-dsl-libs-cu13", "nvidia-cutlass-dsl-libs-cu12")  # either
_HOPPER = 9
# It compiles another kernel where the longest segment fits into one block of rows (of 192 or fewer). The length that it
# is given is a bound, from which no launch depends here: with this one at least there is one kernel for all packs.
_SEVERAL_BLOCKS = 256


def problem(device: torch.device) -> str | None:
    """Why its attention cannot run on `device`; None where it can."""
    if device.type != "cuda":
        return "flash-attn-4 needs a GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability[0] != _HOPPER:
        name = torch.cuda.get_device_name(device)
        return f"flash-attn-4 is for Hopper (compute capability 9.0), and {name} has {capability[0]}.{capability[1]}"
    found = version("flash-attn-4")
    if found != VERSION:
        state = f"{found} is installed, and {VERSION} is supported" if found else "is not installed"
        return f"flash-attn-4 {state} ({LOCK})"
    missing = [name for name in _NEEDS if not version(name)]
    if not any(map(version, _COMPILERS)):
        missing.append(f"{_COMPILERS[0]} or {_COMPILERS[1]}")
    return f"flash-attn-4 lacks {', '.join(missing)} ({LOCK})" if missing else None


def flash_attn_4(
    query: Tensor, key: Tensor, value: Tensor, params: SegmentParams, causal: bool, scale: float
) -> Tensor:
    """Attention output [T, h*d] in BF16 or FP16; q [T, h, d], k and v [K, g, d] on a Hopper GPU.

    Where a piece has fewer queries than keys, the last query sees the last key. With
    `torch.use_deterministic_algorithms` the backward pass gives the same bits twice.
    """
    # Here, as it takes seconds and needs Triton.
    from flash_attn.cute import flash_attn_varlen_func

    output, _ = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=params.cu_seqlens_q,
        cu_seqlens_k=params.cu_seqlens_kv,
        max_seqlen_q=max(params.max_seqlen_q, _SEVERAL_BLOCKS),
        max_seqlen_k=max(params.max_seqlen_kv, _SEVERAL_BLOCKS),
        softmax_scale=scale,
        causal=causal,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        return_lse=True,  # else a pass without gradients, as the first one of a recomputed layer, is another kernel
    )
    return output.flatten(1)
