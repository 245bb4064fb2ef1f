"""Rotary embedding: the angles of language and vision, and the turn of q and k by them.

It is applied between the QK norm and the attention, where Megatron's own would be, but by one angle a token, whatever
the segments are: Megatron's splits q and k at every segment and waits for the device to learn where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequencies(dimensions: int, base: float) -> Tensor:
    """float32 [dimensions / 2] on the CPU: base ** (-2i / dimensions)."""
    return 1.0 / base ** (torch.arange(0, dimensions, 2, dtype=torch.float32, device="cpu") / dimensions)


def rotate(q: Tensor, k: Tensor, angles: Tensor, learned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q and k [T, heads, d] with each pair (x[j], x[j + d/2]) turned by angles[token, j] (float32 [T, d/2]).

    Computed in float32 and rounded once, as `onevision.ops.rotary.rotary`, which does the same in one kernel and can
    leave out the gradient of angles that are not `learned`; here all have one.
    """
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]

    def turned(x: Tensor) -> Tensor:
        low, high = x.float().chunk(2, dim=-1)
        return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1).to(x.dtype)

    return turned(q), turned(k)
