"""Rotary embedding of packed q and k, as the vision tower uses it: any angle for any token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotary(q: Tensor, k: Tensor, angles: Tensor, learned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q and k with each pair (x[j], x[j + D/2]) of every head turned by angles[token, j].

    Sums are in float32 and rounded once. All three have gradients. That of the angles costs another pass over q and k,
    which have to be kept for it; where only the angles of some tokens are learned, those are enough.

    Args:
        q, k: float32 or bfloat16 [T, heads, D], each with its own number of heads; any strides, the last is 1. D is
            even and at most 256.
        angles: float32 [T, D/2], contiguous.
        learned: int64 [N], the tokens whose angles have a gradient; that of the others is zero. Not given: all.

    Returns:
        Two new contiguous tensors.
    """
    if learned is None or not angles.requires_grad:
        return torch.ops.onevision.rotary(q, k, angles)
    return _SomeAngles.apply(q, k, angles, learned)


class _SomeAngles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, angles: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(angles, learned, q.index_select(0, learned), k.index_select(0, learned))
        return torch.ops.onevision.rotary(q, k, angles)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        angles, learned, *inputs = ctx.saved_tensors
        back_q, back_k = torch.ops.onevision.rotary(_dense(grad_q), _dense(grad_k), angles, True)
        gradients = (back.index_select(0, learned) for back in (back_q, back_k))
        of_learned = torch.ops.onevision.rotary_angles(*inputs, *gradients)
        return back_q, back_k, torch.zeros_like(angles).index_copy_(0, learned, of_learned), None


def register(namespace: str) -> None:
    """Shapes and gradients of the ops in a namespace."""
    ops = getattr(torch.ops, namespace)

    def shapes(q: Tensor, k: Tensor, angles: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return q.new_empty(q.shape), k.new_empty(k.shape)

    def angles_shape(q: Tensor, k: Tensor, grad_q: Tensor, grad_k: Tensor) -> Tensor:
        return q.new_empty((q.shape[0], q.shape[2] // 2), dtype=torch.float32)

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        q, k, angles, ctx.inverse = inputs
        ctx.save_for_backward(angles, *((q, k) if ctx.needs_input_grad[2] else ()))

    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        angles, *inputs = ctx.saved_tensors
        back_q, back_k = ops.rotary(_dense(grad_q), _dense(grad_k), angles, not ctx.inverse)
        back_angles = None
        if inputs:
            back_angles = ops.rotary_angles(*inputs, back_q, back_k)
            back_angles = -back_angles if ctx.inverse else back_angles
        return back_q, back_k, back_angles, None

    torch.library.register_fake(f"{namespace}::rotary", shapes)
    torch.library.register_fake(f"{namespace}::rotary_angles", angles_shape)
    torch.library.register_autograd(f"{namespace}::rotary", backward, setup_context=remember)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()  # the gradient of a sum has strides of 0
