"""What Megatron-core 0.16.1 takes from Transformer Engine or apex, from PyTorch where neither is installed.

Without them Megatron's own code for the norm of the gradients waits for the device once a parameter, its Adam writes
checkpoints that it cannot read again, and gradients of weights are rounded to BF16 before they are added up in FP32.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import clip_grads, distrib_optimizer
from megatron.core.optimizer import optimizer as megatron_steps
from megatron.core.tensor_parallel import layers
from torch import Tensor

from onevision.model.loss import add_product
from onevision.training.adam import FusedAdam


class WeightGradients:
    """Stands for apex's `fused_weight_gradient_mlp_cuda`: the product that is a weight's gradient, added to FP32."""

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
        """main_grad += grad_output.T @ inputs, float32 [m, n], of [k, m] and [k, n]."""
        add_product(main_grad, grad_output, inputs)


def multi_tensor_l2norm(
    chunk_size: int, overflow: Tensor, tensors: list[list[Tensor]], per_tensor: bool
) -> tuple[Tensor, None]:
    """Norm of all tensors together, float32 [1]."""
    norms = torch._foreach_norm(tensors[0], 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms))[None], None


def multi_tensor_scale(chunk_size: int, overflow: Tensor, tensors: list[list[Tensor]], scale: float) -> None:
    """tensors[1] = tensors[0] * scale; both may be the same."""
    source, target = tensors
    if source is not target:
        torch._foreach_copy_(target, source)
    torch._foreach_mul_(target, scale)


def install_adam() -> None:
    """Give Megatron an Adam that keeps `step` in the parameter group, as apex's and Transformer Engine's do: the branch
    for torch's own AdamW in the distributed optimizer writes checkpoints that it cannot read again."""
    megatron_optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True


def install() -> None:
    """Put PyTorch's pieces where neither Transformer Engine's nor apex's are. Safe to call again."""
    if not layers._grad_accum_fusion_available:
        layers.fused_weight_gradient_mlp_cuda = WeightGradients
        layers._grad_accum_fusion_available = True
    if megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        install_adam()
        clip_grads.l2_norm_impl = multi_tensor_l2norm
        clip_grads.multi_tensor_scale_impl = multi_tensor_scale
        megatron_steps.multi_tensor_scale_impl = multi_tensor_scale


def pieces() -> dict[str, Any]:
    """Which implementation of each piece Megatron-core now uses."""
    return {
        "optimizer": f"{megatron_optimizer.Adam.__module__}.{megatron_optimizer.Adam.__name__}",
        "weight gradients": getattr(layers.fused_weight_gradient_mlp_cuda, "__name__", "none"),
    }
