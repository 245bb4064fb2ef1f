"""Overlap of tensor-parallel messages with the products beside them, by Transformer Engine's user buffers:
`performance.tp_comm_overlap`.

Tokens are gathered and sums scattered piece by piece while products of other pieces run, through buffers that all
tensor-parallel ranks of a node have mapped. A buffer has the size of language's hidden states, which is that of every
pack; vision, whose rows vary and are not shared among ranks, has none. There are 12: those of qkv, proj, fc1 and fc2,
forward and backward (`initialize_ub` of Transformer Engine 2.11, `pytorch/module/base.py`).

**Not yet run**: it needs two GPUs.
"""

from __future__ import annotations

import os

import torch


def open_user_buffers(tokens: int, hidden_size: int, ranks: int) -> None:
    """Make the buffers of `ranks` tensor-parallel ranks for BF16 hidden states [tokens, 1, hidden_size], all ranks of
    the job together; those of an earlier model are given up."""
    import transformer_engine_torch
    from transformer_engine.pytorch.module import base

    if not transformer_engine_torch.device_supports_multicast():
        os.environ["UB_SKIPMC"] = "1"  # before Hopper NVLink has no multicast: each rank copies to each
    base.destroy_ub()
    base.initialize_ub(
        [tokens, hidden_size],
        ranks,
        quantization_modes=[base.UserBufferQuantizationMode.NONE],
        dtype=torch.bfloat16,
        bootstrap_backend="nccl",
    )
