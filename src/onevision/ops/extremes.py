"""Ragged extremes on which a kernel must do what its twin does: nothing, one of all, very many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Case = Callable[[Any], Sequence[Tensor]]  # of a namespace of torch.ops: the op's results


def extremes() -> Iterator[tuple[str, str, Case]]:
    """Op, what is extreme, and the case."""
    for tokens, what in ((0, "no token"), (1, "1 patch"), (5, "1 image of 4 patches"), (10_000, "10,000 tokens")):
        for dtype in (torch.float32, torch.bfloat16):
            yield "rotary", f"{what}, {str(dtype).removeprefix('torch.')}", _rotary(tokens, dtype)


def _rotary(tokens: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(tokens, 2, 96, generator=generator).to(dtype).split((64, 32), dim=-1)
    q = q[..., :32]
    angles = 50 * torch.randn(tokens, 16, generator=generator)

    def results(ops: Any) -> Sequence[Tensor]:
        turned = ops.rotary(q, k, angles, False)
        return [*turned, *ops.rotary(*turned, angles, True), ops.rotary_angles(q, k, *turned)]

    return results
