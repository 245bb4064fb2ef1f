"""What a seed draws; the published sizes on the meta device, and a place in Hugging Face's layout for every weight."""

from __future__ import annotations

import pytest
import torch

from onevision.convert.mapping import tensor_groups
from onevision.model.configs import language_config
from onevision.model.device import runtime_context
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PRESETS
from onevision.recipe import ModelRecipe
from onevision.training.checkpoint import CONTENT


def drawn(dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    with runtime_context(device):
        model = OneVisionModel(PRESETS["tiny"], language_config(PRESETS["tiny"], ModelRecipe(preset="tiny"), dtype))
    return dict(model.named_parameters())


def test_a_seed_draws_the_same_weights_in_every_precision(device: torch.device) -> None:
    in_bf16 = drawn(torch.bfloat16, device)
    for name, weight in drawn(torch.float32, device).items():
        assert torch.equal(weight.bfloat16(), in_bf16[name]), name


def meta_model(preset: str, device: torch.device) -> OneVisionModel:
    config = language_config(PRESETS[preset], ModelRecipe(preset=preset), torch.bfloat16, initialize=False)
    with torch.device("meta"), runtime_context(device):
        return OneVisionModel(PRESETS[preset], config)


@pytest.mark.parametrize(
    ("preset", "language", "adapter"),
    # Billions: the language models of 4.41 and 8.19, and the adapters of 27.3 and 33.6 million.
    [("4b", 4.411, 0.0273), ("8b", 8.191, 0.0336)],
)
def test_parameters(device: torch.device, preset: str, language: float, adapter: float) -> None:
    model = meta_model(preset, device)
    assert all(parameter.is_meta for parameter in model.parameters())

    def billions(part: torch.nn.Module) -> float:
        return sum(parameter.numel() for parameter in part.parameters()) / 1e9

    assert billions(model.language) == pytest.approx(language, abs=0.001)
    assert billions(model.vision) == pytest.approx(0.303, abs=0.001)
    assert billions(model.adapter) == pytest.approx(adapter, abs=0.0001)
    assert round(billions(model), 1) == float(preset[0]) + {"4b": 0.7, "8b": 0.5}[preset]


@pytest.mark.parametrize("preset", ["tiny", "1.7b", "4b", "8b"])
def test_every_parameter_has_one_place_in_the_mapping(device: torch.device, preset: str) -> None:
    model = meta_model(preset, device)
    groups = tensor_groups(PRESETS[preset])
    keys = [group.key for group in groups]
    assert len(set(keys)) == len(keys) == len(list(model.parameters()))
    entries = model.sharded_state_dict(metadata=CONTENT).values()
    stored = {entry.key: tuple(entry.data.shape) for entry in entries if isinstance(entry.data, torch.Tensor)}
    assert stored == {group.key: group.shape for group in groups}
    names = [name for group in groups for name, _ in group.sources]
    assert len(set(names)) == len(names)
