"""What `train.precision` and `train.tf32` mean to PyTorch."""

from __future__ import annotations

import torch


def precision_dtype(precision: str) -> torch.dtype:
    """Dtype of the parameters for `train.precision`. BF16 keeps FP32 master weights in the optimizer; FP8 is what the
    products of a BF16 model are computed in."""
    return {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp32": torch.float32}[precision]


def allow_tf32(allowed: bool) -> None:
    """Whether FP32 products on a GPU may be computed in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
