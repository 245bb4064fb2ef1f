"""The FLOP formulas against what PyTorch's own counter sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from onevision.model.configs import language_config
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.onevision import OneVisionModel, freeze
from onevision.model.presets import PRESETS
from onevision.recipe import ModelRecipe
from onevision.training.flops import Work, forward_flops, recompute_flops, step_flops

ARCHITECTURE = PRESETS["tiny"]
GRIDS = [[1, 4, 4], [1, 6, 8], [1, 4, 4]]
SEGMENTS = [50, 70, 8]


def counted(model_recipe: ModelRecipe) -> int:
    """Operations of one forward and backward pass by torch.utils.flop_counter."""
    device = start(Ranks(), 1)
    torch.manual_seed(0)
    model = OneVisionModel(ARCHITECTURE, language_config(ARCHITECTURE, model_recipe, torch.float32))
    freeze(model, model_recipe.freeze)
    grid_thw = torch.tensor(GRIDS)
    patches = torch.randn(int(grid_thw.prod(1).sum()), 588)
    tokens = torch.randint(0, 1000, (sum(SEGMENTS),))
    bounds = torch.tensor([0, *SEGMENTS]).cumsum(0).to(torch.int32)
    slots = torch.arange(1, 1 + len(patches) // 4)
    # The math backend is made of plain products, which the counter knows; it computes the whole square.
    with runtime_context(device), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, torch.arange(len(tokens)), bounds, patches, grid_thw, slots, labels=tokens)[0].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "frozen", [[], ["vision"], ["vision", "language"], ["language"], ["adapter"], ["vision", "adapter"]]
)
def test_step_flops_are_what_the_counter_sees(frozen: list[str]) -> None:
    work = Work(SEGMENTS, [rows * columns for _, rows, columns in GRIDS])
    assert counted(ModelRecipe(preset="tiny", freeze=frozen)) == pytest.approx(
        step_flops(ARCHITECTURE, work, frozen, causal=False), rel=1e-9
    )


@pytest.mark.parametrize(
    "recompute",
    [
        {"recompute": "full"},
        {"recompute": "selective"},
        {"recompute": "selective", "recompute_modules": ["mlp", "layernorm"]},
        {"recompute": "selective", "recompute_modules": ["core_attn", "mlp"]},
    ],
)
@pytest.mark.parametrize("frozen", [[], ["vision"]])
def test_recompute_adds_what_the_counter_sees(recompute: dict[str, Any], frozen: list[str]) -> None:
    work = Work(SEGMENTS, [rows * columns for _, rows, columns in GRIDS])
    model = ModelRecipe(preset="tiny", freeze=frozen, **recompute)
    extra = counted(model) - counted(ModelRecipe(preset="tiny", freeze=frozen))
    assert extra == pytest.approx(recompute_flops(ARCHITECTURE, work, model, causal=False), rel=1e-9)


def test_causal_attention_counts_the_triangle() -> None:
    full = forward_flops(ARCHITECTURE, Work([100], []), causal=False)["language"].attention
    assert forward_flops(ARCHITECTURE, Work([100], []))["language"].attention == full * (100 * 101 / 2) / 100**2


def test_8b_step_by_hand() -> None:
    # One segment of 8,192 tokens, no image: 6 * 7.57e9 parameters of the layers and the head, and the triangle.
    architecture = PRESETS["8b"]
    layers = 36 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288)
    linear = 6 * (layers + 4096 * 151936) * 8192
    attention = 3 * 36 * 4 * 4096 * (8192 * 8193 / 2)
    assert step_flops(architecture, Work([8192], []), []) == pytest.approx(linear + attention, rel=1e-12)
