"""The Triton kernels against the formulas in float64, forward and backward: on a GPU, or interpreted on the CPU.

TRITON_INTERPRET=1 python -m pytest tests/model/test_triton.py      (needs triton==3.6.0 and numpy<2.3)
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.kernels import DEVICE, NEAR, check, check_all, drawn, exactly

pytestmark = pytest.mark.gpu(interpreted=True)
DTYPES = list(NEAR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 2048), (301, 1, 2560), (77, 1, 1024), (1000, 1, 16, 128), (5, 1, 4, 20)])
@pytest.mark.parametrize("layer", [False, True])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype, layer: bool) -> None:
    from onevision.model.triton_kernels import norm

    width = shape[-1]
    inputs = [drawn(*shape, dtype=dtype), drawn(width, dtype=dtype, seed=1)]
    inputs += [drawn(width, dtype=dtype, seed=2)] if layer else []
    exact = exactly(inputs)
    if layer:
        reference = F.layer_norm(exact[0], (width,), exact[1], exact[2], 1e-5)
    else:
        reference = F.rms_norm(exact[0], (width,), exact[1], 1e-5)
    check(norm(inputs[0], inputs[1], inputs[2] if layer else None, 1e-5), inputs, reference, exact)


def test_norm_of_a_part_of_a_product() -> None:
    from onevision.model.triton_kernels import norm

    mixed = drawn(301, 1, 8, 512, dtype=torch.bfloat16).detach()
    key = mixed.split([256, 128, 128], dim=3)[1].requires_grad_()
    weight = drawn(128, dtype=torch.bfloat16)
    exact = exactly([key, weight])
    check(norm(key, weight, None, 1e-6), [key, weight], F.rms_norm(exact[0], (128,), exact[1], 1e-6), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 256), (301, 1000), (77, 4096)])
def test_activations(rows: int, width: int, dtype: torch.dtype) -> None:
    from onevision.model.triton_kernels import bias_add, bias_gelu, swiglu

    x, bias, residual = (drawn(*size, dtype=dtype) for size in ((rows, 1, width), (width,), (rows, 1, width)))
    exact = exactly([x])
    check(swiglu(x), [x], F.silu(exact[0].chunk(2, -1)[0]) * exact[0].chunk(2, -1)[1], exact)
    x.grad = None
    exact = exactly([x, bias])
    check(bias_gelu(x, bias), [x, bias], F.gelu(exact[0] + exact[1]), exact)
    x.grad = bias.grad = None
    exact = exactly([x, bias, residual])
    check(bias_add(x, bias, residual), [x, bias, residual], exact[0] + exact[1] + exact[2], exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 256), (77, 2048), (301, 20)])
@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_norm_beside_the_residual(rows: int, width: int, layer: bool, biased: bool, dtype: torch.dtype) -> None:
    from onevision.model.triton_kernels import add_norm, fork_norm

    x, residual = (drawn(rows, 1, width, dtype=dtype, seed=seed) for seed in (0, 1))
    weight, bias, added = (drawn(width, dtype=dtype, seed=seed) for seed in (2, 3, 4))
    inputs = [x, residual, weight, *([bias] if layer else []), *([added] if biased else [])]
    exact = exactly(inputs)

    def normed(hidden: Tensor) -> Tensor:
        if layer:
            return F.layer_norm(hidden, (width,), exact[2], exact[3], 1e-5)
        return F.rms_norm(hidden, (width,), exact[2], 1e-5)

    hidden = exact[0] + exact[1] + (exact[-1] if biased else 0)
    ours = add_norm(x, added if biased else None, residual, weight, bias if layer else None, 1e-5)
    check_all(ours, inputs, (hidden, normed(hidden)), exact)
    inputs, exact = exactly_again(inputs[0:3:2] + inputs[3 : 3 + layer])
    forked = fork_norm(inputs[0], inputs[1], inputs[2] if layer else None, 1e-5)
    reference = (
        F.layer_norm(exact[0], (width,), exact[1], exact[2], 1e-5)
        if layer
        else F.rms_norm(exact[0], (width,), exact[1], 1e-5)
    )
    check_all(forked, inputs, (exact[0] * 1, reference), exact)


def exactly_again(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    fresh = [x.detach().requires_grad_() for x in tensors]
    return fresh, exactly(fresh)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    low, high = x.chunk(2, -1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "groups", "heads", "width"), [(37, 2, 2, 16), (70, 2, 3, 128), (5, 1, 1, 20)])
def test_normed_and_turned(tokens: int, groups: int, heads: int, width: int, dtype: torch.dtype) -> None:
    """What the attention of language is given."""
    from onevision.model.triton_attention import attention_inputs

    mixed = drawn(tokens, 1, groups * (heads + 2) * width, dtype=dtype)
    weights = [drawn(width, dtype=dtype, seed=seed) for seed in (1, 2)]
    angles = 50 * torch.randn(tokens, width // 2, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    exact = exactly([mixed, *weights])
    parts = exact[0].view(tokens, groups, heads + 2, width)
    query = F.rms_norm(parts[:, :, :heads].reshape(tokens, -1, width), (width,), exact[1], 1e-6)
    key = F.rms_norm(parts[:, :, heads], (width,), exact[2], 1e-6)
    references = turned(query, angles.double()), turned(key, angles.double()), parts[:, :, -1]
    ours = attention_inputs(mixed, groups, width, angles, norms=(weights[0], weights[1], 1e-6))
    check_all(ours, [mixed, *weights], references, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "groups", "width"), [(37, 2, 16), (70, 4, 64), (5, 1, 20)])
def test_biased_and_turned_in_place(tokens: int, groups: int, width: int, dtype: torch.dtype) -> None:
    """What the attention of vision is given, and the angles of two of its tokens are learned."""
    from onevision.model.triton_attention import attention_inputs

    product, bias = drawn(tokens, 1, 3 * groups * width, dtype=dtype), drawn(3 * groups * width, dtype=dtype, seed=1)
    angles = drawn(tokens, width // 2, dtype=torch.float32, seed=2)
    learned = torch.tensor([0, tokens - 2], device=DEVICE)
    exact = exactly([product, bias, angles])
    is_learned = torch.zeros(tokens, 1, dtype=torch.bool, device=DEVICE).index_fill(0, learned, True)
    taken = torch.where(is_learned, exact[2], exact[2].detach())
    parts = (exact[0] + exact[1]).view(tokens, groups, 3, width)
    references = turned(parts[:, :, 0], taken), turned(parts[:, :, 1], taken), parts[:, :, 2]
    mixed = product * 1
    ours = attention_inputs(mixed, groups, width, angles, bias=bias, learned=learned)
    assert all(x.untyped_storage().data_ptr() == mixed.untyped_storage().data_ptr() for x in ours)
    check_all(ours, [product, bias, angles], references, exact)
