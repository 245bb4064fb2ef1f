"""Ragged extremes on which a kernel must do what its twin does: nothing, one of all, very many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
Case = Callable[[Any], Sequence[Tensor]]  # of a namespace of torch.ops: the op's results


def extremes() -> Iterator[tuple[str, str, Case]]:
    """Op, what is extreme, and the case."""
    for tokens, what in ((0, "no token"), (1, "1 patch"), (5, "1 image of 4 patches"), (10_000, "10,000 tokens")):
        for dtype in DTYPES:
            yield "rotary", f"{what}, {_name(dtype)}", _rotary(tokens, dtype)
    for name, rows, slots, width in (
        ("no text", 4, 4, 96),
        ("no image", 4, 0, 96),
        ("1 token of a rank whose image is elsewhere", 1, 1, 96),
        ("10,000 tokens, 9,000 of images", 10_000, 9_000, 8),
        ("rows of 10 bytes", 100, 9, 5),
    ):
        for dtype in DTYPES:
            yield "scatter_features", f"{name}, {_name(dtype)}", _scatter(rows, slots, width, dtype)


def _scatter(rows: int, count: int, width: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    total = max(2 * rows, count)  # of the sequence, of which these rows are the second half
    slots = torch.randperm(total, generator=generator)[:count].sort().values
    embedded = torch.randn(rows, width, generator=generator).to(dtype)
    features = torch.randn(count, width, generator=generator).to(dtype)

    def results(ops: Any) -> Sequence[Tensor]:
        out = ops.scatter_features(embedded, features, slots, total - rows)
        return [out, *ops.scatter_features_backward(out, slots, total - rows)]

    return results


def _rotary(tokens: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(tokens, 2, 96, generator=generator).to(dtype).split((64, 32), dim=-1)
    q = q[..., :32]
    angles = 50 * torch.randn(tokens, 16, generator=generator)

    def results(ops: Any) -> Sequence[Tensor]:
        turned = ops.rotary(q, k, angles, False)
        return [*turned, *ops.rotary(*turned, angles, True), ops.rotary_angles(q, k, *turned)]

    return results


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
