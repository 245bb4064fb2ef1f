"""What tests of kernels share: random tensors, and a comparison with the same in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there Triton interprets its kernels
NEAR = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_()


def check(ours: Tensor, inputs: list[Tensor], reference: Tensor, exact: list[Tensor]) -> None:
    """Output and all gradients, by ||found - expected|| / ||expected||."""
    check_all([ours], inputs, [reference], exact)


def check_all(ours: Sequence[Tensor], inputs: list[Tensor], references: Sequence[Tensor], exact: list[Tensor]) -> None:
    """The same for several outputs."""
    draw = torch.Generator().manual_seed(1)
    above = [torch.randn(each.shape, generator=draw).to(each.device, each.dtype) for each in ours]
    torch.autograd.backward(ours, above)
    torch.autograd.backward(references, [each.double() for each in above])
    pairs = [*zip(ours, references, strict=True), *((x.grad, y.grad) for x, y in zip(inputs, exact, strict=True))]
    for found, expected in pairs:
        assert found is not None and expected is not None and found.shape == expected.shape
        # A single token's attention has no gradient at q and k: what is zero is compared with the largest of all.
        scale = max(expected.norm(), 1e-3 * references[0].norm())
        off = (found.double() - expected).norm() / scale
        assert off < NEAR[ours[0].dtype], f"{tuple(found.shape)}: {off:.1e}"


def exactly(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]
