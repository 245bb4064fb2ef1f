"""Small models with every parameter random, their tensors in the Hugging Face layout, and packs of random samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onevision.convert.mapping import tensor_groups
from onevision.model.configs import language_config
from onevision.model.device import runtime_context
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PATCH_VALUES, Architecture, LanguageArchitecture, VisionArchitecture
from onevision.recipe import ModelRecipe
from onevision.training.checkpoint import CONTENT

LANGUAGE = LanguageArchitecture(
    num_layers=3,
    hidden_size=64,
    ffn_hidden_size=112,
    num_attention_heads=6,
    num_query_groups=2,
    head_dim=16,  # not hidden_size / heads, as in Qwen3 4B
    vocab_size=211,
    rotary_base=5_000_000.0,
    max_position_embeddings=512,
)
SMALL = Architecture(
    "small",
    VisionArchitecture(num_layers=3, hidden_size=64, ffn_hidden_size=112, num_attention_heads=4),
    LANGUAGE,
)


def with_heads(heads: int, groups: int) -> Architecture:
    """SMALL with other attention heads."""
    return replace(SMALL, language=replace(LANGUAGE, num_attention_heads=heads, num_query_groups=groups))


def random_model(
    architecture: Architecture = SMALL,
    recipe: ModelRecipe | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> OneVisionModel:
    """A model whose parameters are all random: no norm is one, no bias and no class token is zero."""
    with runtime_context(torch.device("cpu")):
        model = OneVisionModel(architecture, language_config(architecture, recipe or ModelRecipe(), dtype))
    return randomise(model, seed)


def randomise(model: OneVisionModel, seed: int = 0) -> OneVisionModel:
    """The model, with all parameters drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name == "vision.class_pos_emb":
                parameter.copy_(2 * noise)  # angles in radians
            else:
                parameter.copy_(noise * (0.2 if parameter.dim() == 1 else parameter.shape[1] ** -0.5))
    return model


def checkpoint_tensors(model: OneVisionModel) -> dict[str, Tensor]:
    """Tensors of the model by their checkpoint keys."""
    entries = model.sharded_state_dict(metadata=CONTENT).values()
    return {entry.key: entry.data.detach() for entry in entries if isinstance(entry.data, Tensor)}


def hugging_face_tensors(model: OneVisionModel) -> dict[str, Tensor]:
    """Tensors of the model by their Hugging Face names."""
    tensors = checkpoint_tensors(model)
    named: dict[str, Tensor] = {}
    for group in tensor_groups(model.architecture):
        named |= group.split(tensors[group.key])
    return named


@dataclass(frozen=True)
class Pack:
    """Segments of random tokens, and images whose tokens stand in them."""

    lengths: tuple[int, ...]
    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    patches: Tensor
    grid_thw: Tensor
    image_slots: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the model's forward pass takes, in its order, without the labels."""
        return (
            self.tokens,
            self.position_ids,
            self.cu_seqlens,
            self.patches,
            self.grid_thw,
            self.image_slots,
        )

    def with_values(self, **values: Any) -> Pack:
        """A copy with other values."""
        return replace(self, **values)


def random_pack(
    samples: Sequence[tuple[int, Sequence[tuple[int, int]]]], vocab_size: int = LANGUAGE.vocab_size, seed: int = 0
) -> Pack:
    """A pack of samples, each (text tokens, grids of its images); the images stand two tokens after its begin."""
    generator = torch.Generator().manual_seed(seed)
    lengths, slots, grids = [], [], []
    for text, images in samples:
        start = sum(lengths) + 2
        pads = sum(height * width for height, width in images) // 4
        slots += range(start, start + pads)
        grids += [(1, height, width) for height, width in images]
        lengths.append(text + pads)
    total = sum(lengths)
    grid_thw = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
    return Pack(
        lengths=tuple(lengths),
        tokens=torch.randint(vocab_size, (total,), generator=generator),
        labels=torch.randint(vocab_size, (total,), generator=generator),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        patches=torch.randn(int(grid_thw.prod(1).sum()), PATCH_VALUES, generator=generator),
        grid_thw=grid_thw,
        image_slots=torch.tensor(slots, dtype=torch.int64),
    )
