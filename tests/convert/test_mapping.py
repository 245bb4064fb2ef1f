"""The mapping against the published list of names and shapes, and split and join as each other's inverse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onevision.convert.mapping import TensorGroup, language_groups, rice_groups, tensor_groups, vision_groups
from onevision.model.presets import PRESETS


def published(hidden: int, ffn: int) -> dict[str, list[int]]:
    """Names and shapes of LLaVA-OneVision-1.5: 4B with 2560 and 9728, 8B with 4096 and 12288."""
    shapes: dict[str, list[int]] = {
        "visual.patch_embed.proj.weight": [1024, 3, 14, 14],
        "visual.class_embedding": [1024],
        "visual.class_pos_emb": [1, 32],
        "visual.pre_layernorm.weight": [1024],
        "visual.pre_layernorm.bias": [1024],
        "visual.merger.ln_q.weight": [1024],
        "visual.merger.ln_q.bias": [1024],
        "visual.merger.mlp.0.weight": [4096, 4096],
        "visual.merger.mlp.0.bias": [4096],
        "visual.merger.mlp.2.weight": [hidden, 4096],
        "visual.merger.mlp.2.bias": [hidden],
        "model.embed_tokens.weight": [151936, hidden],
        "model.norm.weight": [hidden],
        "lm_head.weight": [151936, hidden],
    }
    for n in range(24):
        block = f"visual.blocks.{n}"
        for name, shape in {
            "norm1": [1024],
            "norm2": [1024],
            "attn.qkv": [3072, 1024],
            "attn.proj": [1024, 1024],
            "mlp.fc1": [4096, 1024],
            "mlp.fc2": [1024, 4096],
        }.items():
            shapes[f"{block}.{name}.weight"] = shape
            shapes[f"{block}.{name}.bias"] = shape[:1]
    for n in range(36):
        layer = f"model.layers.{n}"
        shapes |= {
            f"{layer}.input_layernorm.weight": [hidden],
            f"{layer}.post_attention_layernorm.weight": [hidden],
            f"{layer}.self_attn.q_proj.weight": [4096, hidden],
            f"{layer}.self_attn.k_proj.weight": [1024, hidden],
            f"{layer}.self_attn.v_proj.weight": [1024, hidden],
            f"{layer}.self_attn.o_proj.weight": [hidden, 4096],
            f"{layer}.self_attn.q_norm.weight": [128],
            f"{layer}.self_attn.k_norm.weight": [128],
            f"{layer}.mlp.gate_proj.weight": [ffn, hidden],
            f"{layer}.mlp.up_proj.weight": [ffn, hidden],
            f"{layer}.mlp.down_proj.weight": [hidden, ffn],
        }
    return shapes


@pytest.mark.parametrize(("preset", "hidden", "ffn"), [("4b", 2560, 9728), ("8b", 4096, 12288)])
def test_the_published_keys_and_shapes(preset: str, hidden: int, ffn: int) -> None:
    found: dict[str, list[int]] = {}
    for group in tensor_groups(PRESETS[preset]):
        tensors = group.split(torch.empty(group.shape, dtype=torch.bfloat16, device="meta"))
        assert group.join(tensors).shape == group.shape
        for name, tensor in tensors.items():
            assert name not in found
            found[name] = list(tensor.shape)
    expected = published(hidden, ffn)
    assert len(expected) == 698
    assert sum(name.startswith("visual.") for name in expected) == 299
    assert found == expected


def test_language_rows_stand_together_per_group() -> None:
    """Two groups of two query heads, head size 2: Megatron holds q q k v of the first group, then of the second."""
    language = replace(
        PRESETS["tiny"].language, num_layers=1, hidden_size=4, num_attention_heads=4, num_query_groups=2, head_dim=2
    )
    (group,) = (g for g in language_groups(language) if g.key.endswith("linear_qkv.weight"))
    rows = torch.arange(group.shape[0])
    parts = group.split(rows[:, None].expand(group.shape))
    assert [int(row[0]) for row in parts["model.layers.0.self_attn.q_proj.weight"]] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [int(row[0]) for row in parts["model.layers.0.self_attn.k_proj.weight"]] == [4, 5, 12, 13]
    assert [int(row[0]) for row in parts["model.layers.0.self_attn.v_proj.weight"]] == [6, 7, 14, 15]


def test_vision_rows_stand_together_per_head() -> None:
    """Two heads of size 2: Megatron holds q k v of the first head, then of the second; the bias likewise."""
    vision = replace(PRESETS["tiny"].vision, num_layers=1, hidden_size=4, num_attention_heads=2)
    (group,) = (g for g in vision_groups(vision) if g.key.endswith("linear_qkv.bias"))
    (bias,) = group.split(torch.arange(12)).values()
    assert bias.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


def test_rice_names_are_those_of_its_directory() -> None:
    vision = PRESETS["8b"].vision
    names = {name: shape for group in rice_groups(vision, "vision_model.") for name, shape in group.sources}
    assert len(names) == 5 + 24 * 16
    assert names["vision_model.embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert names["vision_model.embeddings.class_embedding"] == (1024,)
    assert names["vision_model.class_pos_emb"] == (1, 32)
    assert names["vision_model.pre_layrnorm.bias"] == (1024,)
    layer = "vision_model.encoder.layers.23."
    ends = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    ends += [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    expected = {f"{layer}{end}.{kind}" for end in ends for kind in ("weight", "bias")}
    assert {name for name in names if name.startswith(layer)} == expected
    assert names[f"{layer}self_attn.v_proj.bias"] == (1024,)


@given(
    blocks=st.integers(1, 4),
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    columns=st.integers(0, 3),
    fused=st.booleans(),
)
def test_join_is_the_inverse_of_split(blocks: int, rows: tuple[int, ...], columns: int, fused: bool) -> None:
    rest = (columns,) if columns else ()
    total = blocks * sum(rows)
    sizes = [total] if fused else [blocks * count for count in rows]
    sources = tuple((f"part{i}", (size, *rest)) for i, size in enumerate(sizes))
    group = TensorGroup("key", (total, *rest), sources, blocks, rows)
    tensor = torch.randn(group.shape)
    parts = group.split(tensor)
    assert [tuple(part.shape) for part in parts.values()] == [shape for _, shape in sources]
    assert torch.equal(group.join(parts), tensor)
