"""The rows that FP8 products ask for: rows of zeros beside the images change no bit of a loss. A weight's gradient is a
sum over rows, to which they add zeros: the same terms, which a matrix product may add in another order.

PyTorch's modules compute here in FP32, whatever the configuration says of FP8: what is tested is the padding alone.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from onevision.model.configs import adapter_config, language_config, row_multiple, vision_config
from onevision.model.device import runtime_context
from onevision.model.onevision import OneVisionModel
from onevision.recipe import ModelRecipe, TrainRecipe
from tests.model.common import SMALL, random_model, random_pack

FP8 = TrainRecipe(precision="fp8")
GRIDS = {"some": [(4, 6), (2, 2)], "many": [(2, 4)] * 5, "none": ()}


@cache
def loss_and_gradients(images: str, padded: bool) -> tuple[Tensor, dict[str, Tensor], set[int]]:
    """Loss, gradients by name, and the numbers of rows that linear layers of vision and adapter were given."""
    model = random_model()
    if padded:
        config = language_config(SMALL, ModelRecipe(), torch.float32, train=FP8)
        with runtime_context(torch.device("cpu")):
            other = OneVisionModel(SMALL, config)
        other.load_state_dict(model.state_dict())
        model = other
    rows: set[int] = set()
    for part in (model.vision.decoder, model.adapter.projector):
        for module in part.modules():
            if type(module).__name__.endswith("ParallelLinear"):
                module.register_forward_pre_hook(lambda _, inputs: rows.add(len(inputs[0])))
    pack = random_pack([(9, GRIDS[images]), (14, ()), (7, [(6, 2)] if images != "none" else ())])
    with runtime_context(torch.device("cpu")):
        result = model(*pack.inputs, labels=pack.labels)
        loss = result[0] if isinstance(result, tuple) else result.sum()
        loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), gradients, rows


@pytest.mark.parametrize("images", GRIDS)
def test_padding_changes_no_bit_of_a_loss(device: torch.device, images: str) -> None:
    loss, gradients, rows = loss_and_gradients(images, False)
    again, gradients_again, padded_rows = loss_and_gradients(images, True)
    assert torch.equal(loss, again)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        difference = (gradient - gradients_again[name]).abs().max()
        assert difference <= 1e-5 * gradient.abs().max(), name
    if images != "none":
        assert any(count % 16 for count in rows)
        assert padded_rows and not any(count % 16 for count in padded_rows)


def test_what_fp8_means_to_the_three_parts() -> None:
    train = TrainRecipe(precision="fp8", fp8_bf16_layers=1)
    language = language_config(SMALL, ModelRecipe(), torch.bfloat16, train=train)
    vision = vision_config(SMALL, language)
    adapter = adapter_config(SMALL, vision)
    assert {config.fp8_recipe for config in (language, vision, adapter)} == {"tensorwise"}
    assert [config.first_last_layers_bf16 for config in (language, vision, adapter)] == [True, True, False]
    assert all(config.tp_only_amax_red for config in (language, vision, adapter))
    assert [row_multiple(config) for config in (language, vision, adapter)] == [16, 16, 16]
    assert row_multiple(language_config(SMALL, ModelRecipe(), torch.bfloat16, train=TrainRecipe())) == 1
