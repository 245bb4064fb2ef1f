"""Image features in the places of their tokens, in the embedded sequence or in a rank's part of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scatter_features(embedded: Tensor, features: Tensor, slots: Tensor, first: int = 0) -> Tensor:
    """Rows `first` to `first + R` of the sequence: features[n] where slots[n] is the row, else what is embedded there.

    Under sequence parallelism a rank has R of all T rows and passes the first of them, with all features and slots:
    those of other ranks' rows are passed over. The gradient of the features is then the rank's share, zeros for the
    slots of others; the sum over the tensor-parallel ranks is the whole, exactly.

    Args:
        embedded: float32 or bfloat16 [R, H], contiguous.
        features: [N, H], like it.
        slots: int64 [N], strictly ascending (`PackedBatch.image_slots`); on a GPU the kernel ends in a device-side
            trap where they are not.

    Returns:
        A new tensor [R, H].
    """
    return torch.ops.onevision.scatter_features(embedded, features, slots, first)


def register(namespace: str) -> None:
    """Shapes and gradients of the ops in a namespace."""
    ops = getattr(torch.ops, namespace)

    def shape(embedded: Tensor, features: Tensor, slots: Tensor, first: int = 0) -> Tensor:
        return embedded.new_empty(embedded.shape)

    def backward_shapes(grad: Tensor, slots: Tensor, first: int) -> tuple[Tensor, Tensor]:
        return grad.new_empty(grad.shape), grad.new_empty((slots.shape[0], grad.shape[1]))

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, slots, ctx.first = inputs
        ctx.save_for_backward(slots)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return *ops.scatter_features_backward(grad.contiguous(), slots, ctx.first), None, None

    torch.library.register_fake(f"{namespace}::scatter_features", shape)
    torch.library.register_fake(f"{namespace}::scatter_features_backward", backward_shapes)
    torch.library.register_autograd(f"{namespace}::scatter_features", backward, setup_context=remember)
