"""Which Hugging Face tensors hold the numbers of which Megatron tensor, and how one is cut into the other.

The Hugging Face layout is that of `LLaVAOneVision1_5_ForConditionalGeneration`; its language part has Qwen3's own
names. Megatron keys are those of a checkpoint, where a norm before a linear layer is that layer's `layer_norm_*`.
The functions are pure and need no model, so a conversion holds one group of tensors at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onevision.model.presets import (
    CHANNELS,
    PATCH_SIZE,
    PATCH_VALUES,
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class TensorGroup:
    """One Megatron tensor and the Hugging Face tensors that make it up.

    The Hugging Face tensors, stacked along their first axis, are the Megatron tensor with its rows in another order:
    Megatron's rows come in `blocks` equal blocks, and a block holds `rows[i]` rows of the i-th kind. Query, key and
    value of one attention group stand together there, while Hugging Face has all queries, all keys, all values.
    """

    key: str
    shape: tuple[int, ...]
    sources: tuple[tuple[str, tuple[int, ...]], ...]  # Hugging Face name and shape
    blocks: int = 1
    rows: tuple[int, ...] = ()  # empty: the rows are in the same order

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Hugging Face tensors of the Megatron tensor; dtype and device stay. What is not moved is not copied."""
        if self.rows:
            blocks = tensor.unflatten(0, (self.blocks, -1)).split(self.rows, dim=1)
            kinds = [part.flatten(0, 1) for part in blocks]
            pieces = kinds if len(self.sources) == len(kinds) else [torch.cat(kinds)]
        else:
            pieces = list(tensor.split([shape[0] for _, shape in self.sources]))
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self.sources, pieces, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Megatron tensor of the Hugging Face tensors; the inverse of `split`."""
        pieces = [tensors[name].reshape(shape[0], *self.shape[1:]) for name, shape in self.sources]
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if self.rows:
            parts = tensor.split([self.blocks * count for count in self.rows])
            tensor = torch.cat([part.unflatten(0, (self.blocks, -1)) for part in parts], dim=1).flatten(0, 1)
        return tensor


def tensor_groups(architecture: Architecture) -> list[TensorGroup]:
    """All tensors of the model: every Megatron key once, every Hugging Face key once."""
    return [
        *vision_groups(architecture.vision),
        *adapter_groups(architecture),
        *language_groups(architecture.language),
    ]


def vision_groups(vision: VisionArchitecture) -> Iterator[TensorGroup]:
    """The vision tower: `vision.*` and `visual.*`."""
    width, ffn, head_dim = vision.hidden_size, vision.ffn_hidden_size, vision.head_dim
    convolution = (width, CHANNELS, PATCH_SIZE, PATCH_SIZE)
    yield TensorGroup(
        "vision.patch_embed.weight", (width, PATCH_VALUES), (("visual.patch_embed.proj.weight", convolution),)
    )
    yield _same("vision.class_embedding", "visual.class_embedding", width)
    yield _same("vision.class_pos_emb", "visual.class_pos_emb", 1, head_dim // 2)
    yield from _affine("vision.pre_layernorm.", "visual.pre_layernorm.", width)
    for number in range(vision.num_layers):
        ours, theirs = f"vision.decoder.layers.{number}.", f"visual.blocks.{number}."
        yield from _affine(f"{ours}self_attention.linear_qkv.layer_norm_", f"{theirs}norm1.", width)
        for group in _affine(f"{ours}self_attention.linear_qkv.", f"{theirs}attn.qkv.", 3 * width, width):
            yield replace(group, blocks=vision.num_attention_heads, rows=(head_dim,) * 3)
        yield from _affine(f"{ours}self_attention.linear_proj.", f"{theirs}attn.proj.", width, width)
        yield from _affine(f"{ours}mlp.linear_fc1.layer_norm_", f"{theirs}norm2.", width)
        yield from _affine(f"{ours}mlp.linear_fc1.", f"{theirs}mlp.fc1.", ffn, width)
        yield from _affine(f"{ours}mlp.linear_fc2.", f"{theirs}mlp.fc2.", width, ffn)


def adapter_groups(architecture: Architecture) -> Iterator[TensorGroup]:
    """The patch merger: `adapter.*` and `visual.merger.*`."""
    merged, out = architecture.merged_size, architecture.language.hidden_size
    yield from _affine("adapter.layernorm.", "visual.merger.ln_q.", architecture.vision.hidden_size)
    yield from _affine("adapter.projector.encoder.linear_fc1.", "visual.merger.mlp.0.", merged, merged)
    yield from _affine("adapter.projector.encoder.linear_fc2.", "visual.merger.mlp.2.", out, merged)


def language_groups(language: LanguageArchitecture) -> Iterator[TensorGroup]:
    """The language model: `language.*` and Qwen3's `model.*`, `lm_head.weight`."""
    width, ffn, head_dim = language.hidden_size, language.ffn_hidden_size, language.head_dim
    groups, heads = language.num_query_groups, language.num_attention_heads
    queries, keys = heads * head_dim, groups * head_dim
    yield _same("language.embedding.word_embeddings.weight", EMBEDDING, language.vocab_size, width)
    for number in range(language.num_layers):
        ours, theirs = f"language.decoder.layers.{number}.", f"model.layers.{number}."
        attention, mlp = f"{ours}self_attention.", f"{ours}mlp."
        yield _same(f"{attention}linear_qkv.layer_norm_weight", f"{theirs}input_layernorm.weight", width)
        yield TensorGroup(
            f"{attention}linear_qkv.weight",
            (queries + 2 * keys, width),
            (
                (f"{theirs}self_attn.q_proj.weight", (queries, width)),
                (f"{theirs}self_attn.k_proj.weight", (keys, width)),
                (f"{theirs}self_attn.v_proj.weight", (keys, width)),
            ),
            blocks=groups,
            rows=(queries // groups, head_dim, head_dim),
        )
        yield _same(f"{attention}q_layernorm.weight", f"{theirs}self_attn.q_norm.weight", head_dim)
        yield _same(f"{attention}k_layernorm.weight", f"{theirs}self_attn.k_norm.weight", head_dim)
        yield _same(f"{attention}linear_proj.weight", f"{theirs}self_attn.o_proj.weight", width, queries)
        yield _same(f"{mlp}linear_fc1.layer_norm_weight", f"{theirs}post_attention_layernorm.weight", width)
        yield TensorGroup(
            f"{mlp}linear_fc1.weight",
            (2 * ffn, width),
            ((f"{theirs}mlp.gate_proj.weight", (ffn, width)), (f"{theirs}mlp.up_proj.weight", (ffn, width))),
        )
        yield _same(f"{mlp}linear_fc2.weight", f"{theirs}mlp.down_proj.weight", width, ffn)
    yield _same("language.decoder.final_layernorm.weight", "model.norm.weight", width)
    yield _same("language.output_layer.weight", HEAD, language.vocab_size, width)


RICE_NAMES = (
    ("visual.patch_embed.proj.", "embeddings.patch_embedding."),
    ("visual.class_embedding", "embeddings.class_embedding"),
    ("visual.class_pos_emb", "class_pos_emb"),
    ("visual.pre_layernorm.", "pre_layrnorm."),  # spelled so in the published weights
    ("visual.blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.out_proj."),
)


def rice_groups(vision: VisionArchitecture, prefix: str) -> Iterator[TensorGroup]:
    """The vision tower in the layout of a RICE-ViT directory (`MLCDVisionModel`), all names behind `prefix`.

    Query, key and value are separate tensors there.
    """
    for group in vision_groups(vision):
        ((name, shape),) = group.sources
        for theirs, rice in RICE_NAMES:
            name = name.replace(theirs, rice)
        if ".attn.qkv." in name:
            third = (shape[0] // 3, *shape[1:])
            names = [name.replace(".attn.qkv.", f".self_attn.{part}_proj.") for part in "qkv"]
            yield replace(group, sources=tuple((prefix + part, third) for part in names))
        else:
            yield replace(group, sources=((prefix + name, shape),))


def _same(key: str, name: str, *shape: int) -> TensorGroup:
    return TensorGroup(key, shape, ((name, shape),))


def _affine(key: str, name: str, out: int, *rest: int) -> Iterator[TensorGroup]:
    """Weight [out, *rest] and bias [out] of a linear layer or a LayerNorm."""
    yield _same(f"{key}weight", f"{name}weight", out, *rest)
    yield _same(f"{key}bias", f"{name}bias", out)
