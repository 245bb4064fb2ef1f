"""The vision tower that each tensor-parallel rank has whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.transformer.mlp import MLP

from onevision.model.configs import language_config
from onevision.model.device import runtime_context
from onevision.model.onevision import OneVisionModel, Part
from onevision.model.specs import TORCH
from onevision.recipe import ModelRecipe
from tests.model.common import SMALL


class OwnMLP(MLP):
    """What a GPU's MLPs are to Megatron: another class."""


@pytest.mark.parametrize("mlp", [MLP, OwnMLP])
def test_no_linear_layer_of_a_split_tower_is_shared(device: torch.device, mlp: type) -> None:
    config = language_config(SMALL, ModelRecipe(), torch.float32)
    with runtime_context(device):
        model = OneVisionModel(SMALL, config, replace(TORCH, mlp=mlp), Part(split_vision=True))
    groups = {
        part: {id(module.tp_group) for module in getattr(model, part).modules() if hasattr(module, "tp_group")}
        for part in ("vision", "adapter", "language")
    }
    alone = {id(parallel_state.get_expert_tensor_parallel_group())}
    assert groups["vision"] == groups["adapter"] == alone
    assert groups["language"] == {id(parallel_state.get_tensor_model_parallel_group())} != alone
