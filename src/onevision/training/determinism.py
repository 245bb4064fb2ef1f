"""The same bits twice: `train.deterministic`, for tests. It is set before a GPU is used, and costs nothing when off.

On a CPU training gives the same bits anyway, for the same number of threads and ranks; there the switch makes PyTorch
raise at an operation that would not. On a GPU it changes (not yet tried on one):

- PyTorch's operations take their deterministic kernels, or raise where they have none. Among them: the backward pass of
  flash attention (`aten._flash_attention_backward` asks the same switch, and then adds up dq in a fixed order), that of
  `index_select`, and that of the embedding, for which Megatron's `deterministic_mode` takes plain indexing.
- cuBLAS gets a workspace of a fixed size for each stream (CUBLAS_WORKSPACE_CONFIG), cuDNN is not allowed to try out
  algorithms, and Transformer Engine's attention takes no kernel that adds up atomically.
- NCCL sums along rings and nothing else (NCCL_ALGO): trees and the switches' own sums, which it chooses by the size of
  a message and by what the machine offers, add up in other orders. Two runs are alike on the same layout of ranks.

Our own kernels (Triton, `cuda/`) add up in a fixed order always.
"""

from __future__ import annotations

import os

import torch

# Read by libraries when they start on this process's first work on a GPU, which is why they are not arguments.
_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "NCCL_ALGO": "Ring"}


def set_determinism(on: bool) -> None:
    """Choose for this process; before it touches a GPU."""
    if on:
        os.environ.update(_VARIABLES)
    if on != torch.are_deterministic_algorithms_enabled():  # to ask costs nothing, to set loads PyTorch's compiler
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False
