"""Recomputing activations changes memory and time, and not one bit of the loss or of a gradient.

One exception: all layers turn by the class token's angles, whose gradient is thus a sum over layers. A checkpointed
block hands over its own sum, so the same terms are added in another order.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from onevision.model.device import runtime_context
from onevision.recipe import ModelRecipe
from tests.model.common import random_model, random_pack

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def loss_and_gradients(
    precision: str, recompute: str, layers: int = 1, modules: tuple[str, ...] = ("core_attn",)
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Per-token loss, gradients by name, and how often core attention ran."""
    recipe = ModelRecipe(recompute=recompute, recompute_layers=layers, recompute_modules=list(modules))
    model = random_model(recipe=recipe, dtype=DTYPES[precision])
    wrapped = Float16Module(model.config, model) if precision == "bf16" else model
    wrapped.train()
    pack = random_pack([(9, [(4, 6)]), (14, ()), (7, [(2, 4), (6, 2)])])
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for module in model.modules():
        if type(module).__name__ == "SegmentAttention":
            module.register_forward_pre_hook(count)
    with runtime_context(torch.device("cpu")):
        total, loss = wrapped(*pack.inputs, labels=pack.labels)
        total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return loss.detach(), gradients, runs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("recompute", "layers"), [("full", 1), ("full", 3), ("selective", 1)])
def test_recompute_is_bit_equal(device: torch.device, precision: str, recompute: str, layers: int) -> None:
    loss, gradients, runs = loss_and_gradients(precision, "none")
    again, gradients_again, runs_again = loss_and_gradients(precision, recompute, layers)
    assert loss.isfinite().all() and loss.abs().max() > 0
    assert runs == 6 and runs_again == 12  # 3 vision and 3 language layers: each ran a second time
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.count_nonzero(gradient) > 0, name
        if name == "vision.class_pos_emb":
            torch.testing.assert_close(gradient, gradients_again[name])
        else:
            assert torch.equal(gradient, gradients_again[name]), name


@pytest.mark.parametrize("modules", [("mlp",), ("layernorm",), ("core_attn", "layernorm", "mlp")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_choice_of_modules_is_bit_equal(device: torch.device, precision: str, modules: tuple[str, ...]) -> None:
    loss, gradients, _ = loss_and_gradients(precision, "none")
    again, gradients_again, runs = loss_and_gradients(precision, "selective", modules=modules)
    assert runs == (12 if "core_attn" in modules else 6)
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name


def test_bf16_is_near_fp32(device: torch.device) -> None:
    exact, rounded = loss_and_gradients("fp32", "none")[0], loss_and_gradients("bf16", "none")[0]
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.05 * exact.abs().mean()
