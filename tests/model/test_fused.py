"""The kernels of a GPU's layers against the formulas in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onevision.model.attention import attention_for, flash, grouped, segment_params
from onevision.model.loss import linear_cross_entropy

pytestmark = pytest.mark.gpu
NEAR = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
DTYPES = list(NEAR)


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to("cuda", dtype).requires_grad_()


def check(ours: Tensor, inputs: list[Tensor], reference: Tensor, exact: list[Tensor]) -> None:
    """Output and all gradients, by ||found - expected|| / ||expected||."""
    above = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).cuda()
    ours.backward(above.to(ours.dtype))
    reference.backward(above.double())
    pairs = [(ours, reference), *((x.grad, y.grad) for x, y in zip(inputs, exact, strict=True))]
    for found, expected in pairs:
        assert found is not None and expected is not None and found.shape == expected.shape
        # A single token's attention has no gradient at q and k: what is zero is compared with the largest of all.
        scale = max(expected.norm(), 1e-3 * reference.norm())
        off = (found.double() - expected).norm() / scale
        assert off < NEAR[found.dtype], f"{tuple(found.shape)}: {off:.1e}"


def exactly(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "groups", "width"), [(16, 8, 128), (16, 16, 64), (6, 2, 128)])
@pytest.mark.parametrize("lengths", [[1], [3, 500, 1, 77], [64] * 20, [1, 2, 3, 1025]])
def test_attention(lengths: list[int], heads: int, groups: int, width: int, causal: bool) -> None:
    """Attention over segments of any lengths against the scaled dot product in float64, a length at a time."""
    total = sum(lengths)
    query = drawn(total, heads, width, dtype=torch.bfloat16)
    key, value = (drawn(total, groups, width, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    params = segment_params(bounds, query.device)
    assert attention_for(query) is flash
    exact = exactly([query, key, value])
    reference = grouped(*exact, params, causal, width**-0.5)
    check(flash(query, key, value, params, causal, width**-0.5), [query, key, value], reference, exact)


@pytest.mark.parametrize("rows", [7, 64, 2048])
def test_linear_cross_entropy(rows: int) -> None:
    hidden, weight = drawn(301, 256, dtype=torch.bfloat16), drawn(5000, 256, dtype=torch.bfloat16)
    labels = torch.randint(5000, (301,), generator=torch.Generator().manual_seed(0)).cuda()
    exact = exactly([hidden, weight])
    reference = F.cross_entropy(exact[0] @ exact[1].T, labels, reduction="sum")
    total, losses = linear_cross_entropy(hidden, weight, labels, rows=rows)
    assert abs(total.item() - losses.double().sum().item()) < 1e-3 * total.item()
    assert abs(total.item() - reference.item()) < 1e-2 * reference.item()
    total.backward()
    reference.backward()
    for found, expected in zip((hidden.grad, weight.grad), (x.grad for x in exact), strict=True):
        assert (found.double() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize("gated", [False, True])
def test_an_activation_that_is_made_again(gated: bool) -> None:
    """Output and gradients are those of an MLP that keeps it, to the bit, and the memory is free in between."""
    from dataclasses import replace

    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.mlp import MLPSubmodules

    from onevision.model.configs import language_config, vision_config
    from onevision.model.device import Ranks, start
    from onevision.model.fused import FrugalMLP, FusedMLP
    from onevision.model.presets import PRESETS
    from onevision.recipe import ModelRecipe

    start(Ranks(), 1)
    config = language_config(PRESETS["0.6b"], ModelRecipe(preset="0.6b"), torch.bfloat16)
    config = replace(config if gated else vision_config(PRESETS["0.6b"], config), use_cpu_initialization=False)
    found = []
    for kind in (FusedMLP, FrugalMLP):
        torch.manual_seed(0)
        mlp = kind(config, MLPSubmodules(ColumnParallelLinear, None, RowParallelLinear), ffn_hidden_size=1024).cuda()
        x = drawn(4096, 1, config.hidden_size, dtype=torch.bfloat16)
        before = torch.cuda.memory_allocated()
        output, bias = mlp(x)
        kept = torch.cuda.memory_allocated() - before
        loss = output.square().sum()
        result = output.detach()
        del output
        loss.backward()
        if kind is FrugalMLP:  # what is made again is gone with the backward pass, although the graph lives as long as the loss
            grads = sum(p.grad.nbytes for p in [x, *mlp.parameters()] if p.grad is not None)
            assert torch.cuda.memory_allocated() - before - grads < result.nbytes + 2**20
        found.append([result, x.grad, *(p.grad for p in mlp.parameters() if p.grad is not None)])
        if kind is FusedMLP:
            whole = kept
    assert whole - kept == 2 * 4096 * config.ffn_hidden_size
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
