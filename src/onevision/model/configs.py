"""Megatron's configurations of the three parts of the model: language, vision tower, patch merger."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from onevision.model.presets import Architecture
from onevision.recipe import ModelRecipe


def language_config(
    architecture: Architecture,
    model: ModelRecipe,
    dtype: torch.dtype,
    *,
    initialize: bool = True,
    fused: bool = False,
) -> TransformerConfig:
    """Megatron's configuration of the language model.

    `fused`, on a GPU: elementwise chains are compiled into one kernel, and gradients of weights are added up in FP32 by
    the product that makes them.
    """
    language = architecture.language
    recompute: dict[str, object] = {}
    if model.recompute == "full":
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": model.recompute_layers,
        }
    elif model.recompute == "selective":
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return TransformerConfig(
        num_layers=language.num_layers,
        hidden_size=language.hidden_size,
        ffn_hidden_size=language.ffn_hidden_size,
        num_attention_heads=language.num_attention_heads,
        num_query_groups=language.num_query_groups,
        kv_channels=language.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=language.rmsnorm_epsilon,
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=architecture.init_std,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        calculate_per_token_loss=True,
        perform_initialization=initialize,
        use_cpu_initialization=True,  # the same weights on any device and any layout
        bias_dropout_fusion=fused,
        bias_activation_fusion=fused,
        persist_layer_norm=False,
        gradient_accumulation_fusion=fused,
        masked_softmax_fusion=False,
        **recompute,
    )


def vision_config(architecture: Architecture, language: TransformerConfig) -> TransformerConfig:
    """Megatron's configuration of the vision tower, with the language model's precision and recompute settings."""
    vision = architecture.vision
    return replace(
        language,
        num_layers=vision.num_layers,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.ffn_hidden_size,
        num_attention_heads=vision.num_attention_heads,
        num_query_groups=vision.num_attention_heads,
        kv_channels=vision.head_dim,
        normalization="LayerNorm",
        layernorm_epsilon=vision.layernorm_epsilon,
        qk_layernorm=False,
        gated_linear_unit=False,
        activation_func=F.gelu,
        bias_activation_fusion=False,  # Megatron's is GELU's approximation by tanh
        add_bias_linear=True,
        # replace() passes what __post_init__ derived from the language sizes; derive it again.
        init_method=None,
        output_layer_init_method=None,
        embedding_init_method=None,
    )


def adapter_config(architecture: Architecture, vision: TransformerConfig) -> TransformerConfig:
    """Megatron's configuration of the patch merger's MLP: 4 x vision width inside, language width out."""
    return replace(
        vision,
        num_layers=1,
        hidden_size=architecture.language.hidden_size,
        ffn_hidden_size=architecture.merged_size,
        num_attention_heads=1,
        num_query_groups=1,
        kv_channels=architecture.language.hidden_size,
        init_method=None,
        output_layer_init_method=None,
        embedding_init_method=None,
        recompute_granularity=None,
        recompute_method=None,
        recompute_num_layers=None,
    )
