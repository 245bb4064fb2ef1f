"""Gradients of weights that are added to their FP32 sums by the product that makes them, as on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from megatron.core.tensor_parallel import layers

from onevision.model.configs import language_config
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.gpu_backend import WeightGradients, multi_tensor_l2norm, multi_tensor_scale
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PRESETS
from onevision.recipe import ModelRecipe, recipe_from
from onevision.training.optimizer import data_parallel
from tests.model.common import random_pack

TINY = PRESETS["tiny"]


def gradients(fused: bool) -> dict[str, torch.Tensor]:
    """The FP32 sums of two micro-batches."""
    device = start(Ranks(), 1)
    torch.manual_seed(0)
    config = language_config(TINY, ModelRecipe(preset="tiny"), torch.bfloat16)
    config = replace(config, gradient_accumulation_fusion=fused)
    recipe = recipe_from({"model": {"preset": "tiny"}})
    with runtime_context(device):
        model = OneVisionModel(TINY, config)
        ddp = data_parallel(model, config, recipe)
        ddp.zero_grad_buffer()
        for seed in (1, 2):
            pack = random_pack([(9, [(4, 6)]), (14, ())], vocab_size=TINY.language.vocab_size, seed=seed)
            total, _ = ddp(*pack.inputs, labels=pack.labels, target_rows=torch.arange(3, 20))
            total.backward()
        return {name: parameter.main_grad.clone() for name, parameter in model.named_parameters()}


def test_sums_are_those_of_separate_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", WeightGradients, raising=False)
    fused, separate = gradients(True), gradients(False)
    for name, expected in separate.items():
        assert expected.abs().sum() > 0, name
        assert (fused[name] - expected).norm() < 0.01 * expected.norm(), name  # a product rounded to BF16 or not


def test_norm_and_scale_of_many_tensors() -> None:
    tensors = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (1, 7, 300)]
    flag = torch.zeros(1, dtype=torch.int)
    norm, _ = multi_tensor_l2norm(0, flag, [tensors], False)
    assert norm.shape == (1,)
    torch.testing.assert_close(norm[0], torch.cat(tensors).norm())
    half, copies = [tensor * 0.5 for tensor in tensors], [torch.empty_like(tensor) for tensor in tensors]
    multi_tensor_scale(0, flag, [tensors, copies], 0.5)
    assert all(torch.equal(one, two) for one, two in zip(copies, half, strict=True))
    multi_tensor_scale(0, flag, [tensors, tensors], 0.5)
    assert all(torch.equal(one, two) for one, two in zip(tensors, half, strict=True))
