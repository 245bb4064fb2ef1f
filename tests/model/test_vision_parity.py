"""The vision tower and the adapter against a plain reference, one image after the other, and transformers' MLCD."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MLCDVisionConfig, MLCDVisionModel

from onevision.convert.mapping import rice_groups
from onevision.model.device import runtime_context
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PATCH_SIZE, VisionArchitecture
from onevision.model.vision import patch_positions
from tests.model.common import SMALL, checkpoint_tensors, hugging_face_tensors, random_model

TOLERANCE = 1e-4
# Several sizes, one of them twice, which the attention computes as a batch.
GRIDS = [(4, 6), (2, 2), (10, 2), (4, 6), (2, 8), (6, 8)]


def merge_order(height: int, width: int) -> list[tuple[int, int]]:
    """(row, column) of the patches in the processor's order: 2x2 blocks row by row, row by row inside."""
    return [
        (2 * block_row + row, 2 * block_column + column)
        for block_row in range(height // 2)
        for block_column in range(width // 2)
        for row in range(2)
        for column in range(2)
    ]


def reference_tower(
    weights: dict[str, Tensor], vision: VisionArchitecture, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """RICE-ViT of one image, written from the published description with the published tensor names.

    A convolution makes a token of each patch. One class token stands before them; its rotary angles are learned, a
    patch's are its row and its column times 1/10000^(2i/(d/2)), i < d/4. Pre-norm layers, exact GELU, attention over
    the whole image. The class token is left out of the result [h * w, hidden].
    """
    width, heads, size = vision.hidden_size, vision.num_attention_heads, vision.head_dim
    eps = vision.layernorm_epsilon

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    embedded = F.conv2d(patches.view(-1, 3, PATCH_SIZE, PATCH_SIZE), weights["visual.patch_embed.proj.weight"])
    x = torch.cat([weights["visual.class_embedding"][None], embedded.view(-1, width)])
    x = norm(x, "visual.pre_layernorm")

    frequency = [10000 ** (-2 * i / (size / 2)) for i in range(size // 4)]
    angles = [weights["visual.class_pos_emb"][0].tolist()]
    angles += [[row * f for f in frequency] + [column * f for f in frequency] for row, column in merge_order(*grid)]
    angle = torch.tensor(angles)

    def rotate(x: Tensor) -> Tensor:  # [heads, n, size]: pairs (i, i + size / 2) turn by angle i
        first, second = x.chunk(2, dim=-1)
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    for number in range(vision.num_layers):
        block = f"visual.blocks.{number}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        query, key, value = (part.view(-1, heads, size).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        scores = rotate(query) @ rotate(key).transpose(1, 2) / math.sqrt(size)
        mixed = scores.softmax(-1) @ value
        x = x + linear(mixed.transpose(0, 1).reshape(-1, width), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2")
    return x[1:]


def reference_merger(weights: dict[str, Tensor], eps: float, features: Tensor) -> Tensor:
    """The patch merger of the published layout: LayerNorm, four patches side by side, two linear layers, GELU."""
    name = "visual.merger"
    width = features.shape[1]
    x = F.layer_norm(features, (width,), weights[f"{name}.ln_q.weight"], weights[f"{name}.ln_q.bias"], eps)
    x = F.linear(x.reshape(-1, 4 * width), weights[f"{name}.mlp.0.weight"], weights[f"{name}.mlp.0.bias"])
    return F.linear(F.gelu(x), weights[f"{name}.mlp.2.weight"], weights[f"{name}.mlp.2.bias"])


@pytest.fixture(scope="module")
def model(device: torch.device) -> OneVisionModel:
    return random_model()


@pytest.fixture(scope="module")
def patches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(height * width, 588, generator=generator) for height, width in GRIDS]


def grid_tensor(grids: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([(1, height, width) for height, width in grids])


def test_patch_positions_are_in_merge_order() -> None:
    expected = [position for grid in GRIDS for position in merge_order(*grid)]
    assert patch_positions(grid_tensor(GRIDS)).tolist() == [list(position) for position in expected]


def test_tower_and_adapter_equal_the_reference(model: OneVisionModel, patches: list[Tensor]) -> None:
    weights = hugging_face_tensors(model)
    assert weights["visual.class_pos_emb"].abs().min() > 0
    features = [
        reference_tower(weights, SMALL.vision, image, grid) for image, grid in zip(patches, GRIDS, strict=True)
    ]
    tokens = [reference_merger(weights, SMALL.vision.layernorm_epsilon, image) for image in features]
    with torch.no_grad(), runtime_context(torch.device("cpu")):
        packed = model.vision(torch.cat(patches), grid_tensor(GRIDS))
        merged = model.image_tokens(torch.cat(patches), grid_tensor(GRIDS))
    assert packed.abs().max() > 1
    assert (packed - torch.cat(features)).abs().max() < TOLERANCE
    assert (merged - torch.cat(tokens)).abs().max() < TOLERANCE


def test_the_reference_depends_on_everything(model: OneVisionModel, patches: list[Tensor]) -> None:
    """A check of the check: each of the tower's tensors changes the reference's result by more than the tolerance."""
    weights = hugging_face_tensors(model)
    grid, image = GRIDS[0], patches[0]
    expected = reference_tower(weights, SMALL.vision, image, grid)
    for name, weight in weights.items():
        if name.startswith("visual.") and ".merger." not in name:
            other = {**weights, name: weight + 0.1 * torch.randn(weight.shape)}
            assert (reference_tower(other, SMALL.vision, image, grid) - expected).abs().max() > TOLERANCE, name


def test_an_image_alone_equals_the_image_in_a_pack(model: OneVisionModel, patches: list[Tensor]) -> None:
    with torch.no_grad(), runtime_context(torch.device("cpu")):
        packed = model.vision(torch.cat(patches), grid_tensor(GRIDS)).split([h * w for h, w in GRIDS])
        alone = [model.vision(image, grid_tensor([grid])) for image, grid in zip(patches, GRIDS, strict=True)]
    assert max(float((a - b).abs().max()) for a, b in zip(packed, alone, strict=True)) < TOLERANCE


def test_tower_equals_mlcd(model: OneVisionModel) -> None:
    """transformers' MLCD, the architecture of the published RICE-ViT weights; its patches go row by row."""
    vision = SMALL.vision
    reference = MLCDVisionModel(
        MLCDVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.ffn_hidden_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_attention_heads,
            layer_norm_eps=vision.layernorm_epsilon,
            patch_size=PATCH_SIZE,
            attn_implementation="eager",
        )
    ).eval()
    tensors = checkpoint_tensors(model)
    state: dict[str, Tensor] = {}
    for group in rice_groups(vision, prefix=""):
        state |= group.split(tensors[group.key])
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("post_layernorm.") for name in missing)

    generator = torch.Generator().manual_seed(6)
    images, expected = [], []
    for height, width in GRIDS:
        pixels = torch.randn(3, height * PATCH_SIZE, width * PATCH_SIZE, generator=generator)
        with torch.no_grad():
            rows = reference(pixel_values=pixels[None]).last_hidden_state[0, 1:].view(height, width, -1)
        grid = pixels.view(3, height, PATCH_SIZE, width, PATCH_SIZE).permute(1, 3, 0, 2, 4).flatten(2)
        order = merge_order(height, width)
        images.append(torch.stack([grid[position] for position in order]))
        expected.append(torch.stack([rows[position] for position in order]))
    with torch.no_grad(), runtime_context(torch.device("cpu")):
        packed = model.vision(torch.cat(images), grid_tensor(GRIDS))
    assert (packed - torch.cat(expected)).abs().max() < TOLERANCE
