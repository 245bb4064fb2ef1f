"""Megatron's configurations of the three parts of the model: language, vision tower, patch merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from onevision.model.presets import Architecture
from onevision.recipe import ModelRecipe, ParallelRecipe, TrainRecipe
from onevision.recipe_training import FP8_ROWS

# Delayed scaling takes the largest of so many past maxima of a tensor, as NVIDIA's recipes do. The history moves on
# whenever a part of the model has run (vision, adapter, language), so it spans a third as many micro-batches.
AMAX_HISTORY = 1024


def language_config(
    architecture: Architecture,
    model: ModelRecipe,
    dtype: torch.dtype,
    *,
    initialize: bool = True,
    fused: bool = False,
    train: TrainRecipe | None = None,
    parallel: ParallelRecipe | None = None,
    stage_layers: Sequence[int] = (),
    overlap: bool = False,
) -> TransformerConfig:
    """Megatron's configuration of the language model.

    `fused`, on a GPU: gradients of weights are added up in FP32 by the product that makes them. `train` says whether
    products are computed in FP8, and with which scales; without it none are. `parallel`: how ranks share a model, whose
    pipeline has `stage_layers` (`onevision.model.stages`); without it they do not. `overlap`: tensor-parallel messages
    go through user buffers (`onevision.model.user_buffers`).
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
        # The activation is recomputed by the MLP itself (onevision.model.fused), the others by Megatron.
        modules = [name for name in model.recompute_modules if name != "activation"]
        recompute = {"recompute_granularity": "selective", "recompute_modules": modules} if modules else {}
    fp8 = _fp8(train) if train is not None and train.precision == "fp8" else {}
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
        # The same weights on any device and any layout; what is not drawn is made where it is used.
        use_cpu_initialization=initialize or not fused,
        bias_dropout_fusion=False,  # the elementwise parts are fused by the specs
        bias_activation_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=fused and (train is None or train.grad_reduce_in_fp32),
        masked_softmax_fusion=False,
        deterministic_mode=torch.are_deterministic_algorithms_enabled(),
        tp_comm_overlap=overlap,
        **recompute,
        **fp8,
        **(_shared(parallel, stage_layers, fused) if parallel is not None else {}),
    )


def _shared(parallel: ParallelRecipe, stage_layers: Sequence[int], on_gpu: bool) -> dict[str, object]:
    shared: dict[str, object] = {
        "tensor_model_parallel_size": parallel.tensor,
        "sequence_parallel": parallel.sequence,
        "context_parallel_size": parallel.context,
        "pipeline_model_parallel_size": parallel.pipeline,
    }
    if parallel.pipeline == 1:
        return shared
    interleaved = parallel.virtual_pipeline > 1
    layout = [["decoder"] * layers for layers in stage_layers]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return shared | {
        "pipeline_model_parallel_layout": layout,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline if interleaved else None,
        # Sends of gloo read the tensor later, when it would be gone; those of a GPU are in the order of its stream.
        "deallocate_pipeline_outputs": on_gpu,
        # In the interleaved schedule of one process a rank, batched sends wait for each other in a circle on gloo.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
    }


def _fp8(train: TrainRecipe) -> dict[str, object]:
    return {
        "fp8": "hybrid",  # E4M3 forward, E5M2 for gradients
        "fp8_recipe": train.fp8_recipe,
        "fp8_amax_history_len": AMAX_HISTORY,
        "fp8_amax_compute_algo": "max",
        # Each data-parallel rank has its own scales. Shared ones would be agreed on whenever a part of the model has
        # run, and a rank whose pack has no image does not run vision: the others would wait for it for ever.
        "tp_only_amax_red": True,
        "first_last_layers_bf16": train.fp8_bf16_layers > 0,
        "num_layers_at_start_in_bf16": train.fp8_bf16_layers,
        "num_layers_at_end_in_bf16": train.fp8_bf16_layers,
    }


def row_multiple(config: TransformerConfig) -> int:
    """What the rows of a product must be a multiple of: those of packs are, those of images are padded."""
    return FP8_ROWS if config.fp8 else 1


def vision_config(
    architecture: Architecture, language: TransformerConfig, *, whole: bool = False
) -> TransformerConfig:
    """Megatron's configuration of the vision tower, with the language model's precision and recompute settings; `whole`
    if no other rank has a part of it."""
    vision = architecture.vision
    # Megatron's recomputed MLP hands its bias out, which makes that parameter a result of itself: backward never ends.
    # Language has no biases.
    modules = [name for name in language.recompute_modules or [] if name != "mlp"]
    selective = language.recompute_granularity == "selective"
    return replace(
        language,
        # All of it stands on the first stage, and images belong to one rank of those that share tokens.
        tensor_model_parallel_size=1 if whole else language.tensor_model_parallel_size,
        pipeline_model_parallel_size=1,
        virtual_pipeline_model_parallel_size=None,
        pipeline_model_parallel_layout=None,
        overlap_p2p_comm=False,
        batch_p2p_comm=True,
        context_parallel_size=1,
        sequence_parallel=False,
        tp_comm_overlap=False,
        recompute_modules=modules,
        recompute_granularity=None if selective and not modules else language.recompute_granularity,
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
        num_attention_heads=vision.tensor_model_parallel_size,  # it has no attention; Megatron wants them to divide
        num_query_groups=vision.tensor_model_parallel_size,
        kv_channels=architecture.language.hidden_size,
        init_method=None,
        output_layer_init_method=None,
        embedding_init_method=None,
        recompute_granularity=None,
        recompute_method=None,
        recompute_num_layers=None,
        first_last_layers_bf16=False,  # it is no first or last layer
    )
