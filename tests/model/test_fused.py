"""Attention, loss and MLPs of a GPU against the formulas in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from onevision.model.loss import linear_cross_entropy
from tests.model.kernels import drawn, exactly

pytestmark = pytest.mark.gpu


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
        submodules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        mlp = kind(config, submodules, ffn_hidden_size=config.ffn_hidden_size).cuda()
        x = drawn(4096, 1, config.hidden_size, dtype=torch.bfloat16)
        mlp(x)  # the libraries take memory of their own at the first call
        before = torch.cuda.memory_allocated()
        output, bias = mlp(x)
        kept = torch.cuda.memory_allocated() - before
        loss = output.square().sum()
        result = output.detach()
        del output
        loss.backward()
        if kind is FrugalMLP:  # the graph lives as long as the loss, and what is made again not
            grads = sum(p.grad.nbytes for p in [x, *mlp.parameters()] if p.grad is not None)
            assert torch.cuda.memory_allocated() - before - grads < result.nbytes + 2**20
        found.append([result, x.grad, *(p.grad for p in mlp.parameters() if p.grad is not None)])
        if kind is FusedMLP:
            whole = kept
    assert whole - kept == 2 * 4096 * config.ffn_hidden_size
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
