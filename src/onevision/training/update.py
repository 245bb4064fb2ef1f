"""The optimizer's step in two halves, so that what the gradients are is known before any weight has changed.

Megatron's `step()` does both at once. These are its parts, called as it calls them: a step that is not applied leaves
weights, moments and the optimizer's count of steps as they were.
"""

from __future__ import annotations

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Make the reduced gradients ready for the update; the norm of all of them, the same on every rank. It may be
    called again after another backward pass."""
    optimizer.prepare_grads()  # it looks for NaN only where losses are scaled (FP16)
    return float(optimizer.get_grad_norm())


@torch.no_grad()
def apply_update(optimizer: MegatronOptimizer, norm: float) -> None:
    """Clip the gradients, whose norm is `norm`, and update the weights."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if part.config.clip_grad > 0 and not part.is_stub_optimizer and part.get_parameters():
            clip_grad_by_total_norm_fp32(
                part.get_parameters(),
                max_norm=part.config.clip_grad,
                total_norm=norm,
                use_decoupled_grad=part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
            )
    optimizer.step_with_ready_grads()
