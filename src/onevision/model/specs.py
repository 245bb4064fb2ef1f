"""One builder of Megatron layer specs: Transformer Engine modules where it is installed, plain PyTorch ones elsewhere.

Both give the same checkpoint keys: the norms before a linear layer are stored as that layer's `layer_norm_weight`,
which is where Transformer Engine's fused module keeps them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.extensions import transformer_engine as te
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from onevision.model import layer as plain
from onevision.model.attention import RotarySelfAttention, Rotate, SegmentAttention
from onevision.model.backend import TRANSFORMER_ENGINE, resolve_attention, resolve_backend
from onevision.model.flash_attn_4 import NAME as FLASH_ATTN_4
from onevision.model.flash_attn_4 import flash_attn_4
from onevision.model.rotary import rotate
from onevision.ops.library import load
from onevision.ops.rotary import rotary
from onevision.ops.scatter import scatter_features


class TorchNorm:
    """`torch.nn.LayerNorm` or `RMSNorm`, as `config.normalization` says, with Megatron's norm signature."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:
        norm = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}[config.normalization]
        return marked(norm(hidden_size, eps=eps, dtype=config.params_dtype), config)


def marked(norm: torch.nn.Module, config: TransformerConfig) -> torch.nn.Module:
    """A norm whose parameters Megatron sums the gradients of, where ranks share the tokens that go through it."""
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel
    return norm


# It asks for the class of an MLP in order to pass the group of tensor parallelism; `block_spec` passes it to others.
logging.getLogger("megatron.core.transformer.transformer_layer").addFilter(
    lambda record: "Unknown MLP type" not in record.getMessage()
)
Scatter = Callable[[Tensor, Tensor, Tensor], Tensor]


def scatter(embedded: Tensor, features: Tensor, slots: Tensor) -> Tensor:
    """embedded [T, H] with the rows slots [N] replaced by features [N, H]; a new tensor."""
    return embedded.index_copy(0, slots, features)


@dataclass(frozen=True)
class Modules:
    """The building blocks of one backend. `norm_linear` is a norm fused with the column-parallel linear after it."""

    column_linear: type
    row_linear: type
    norm: type
    core_attention: type | ModuleSpec
    norm_linear: type | None = None
    rotate: Rotate = rotate
    scatter: Scatter = scatter
    mlp: type = MLP
    bias_add: Callable[..., Any] = get_bias_dropout_add
    # Of `onevision.model.layer`, where norms are modules of their own.
    fork_norm: Callable[..., plain.Residual] = plain.fork_norm
    add_norm: Callable[..., plain.Residual] = plain.add_norm
    attention_inputs: Callable[..., tuple[Tensor, Tensor, Tensor]] = plain.attention_inputs
    inputs_add_bias: bool = False


TORCH = Modules(ColumnParallelLinear, RowParallelLinear, TorchNorm, SegmentAttention)


def backend_modules(
    device: torch.device,
    backend: str = "auto",
    recompute_modules: Collection[str] = (),
    *,
    attention: str = "auto",
) -> Modules:
    """The modules of `model.backend` on a device: auto takes Transformer Engine's on a GPU that has it, else PyTorch's.

    On a GPU both use the ops of `cuda/`. `recompute_modules` are those of a selective recomputation, `attention` is
    that of `model.attention`: `SegmentAttention`, but for auto with Transformer Engine where that has one that can run.

    Raises:
        InputError: Transformer Engine or flash_attn_4 is asked for and cannot run here, or the ops of `cuda/` are not
            built.
    """
    backend = resolve_backend(backend, device)
    attention = resolve_attention(attention, backend, device)
    if device.type != "cuda":
        return TORCH
    load()
    from onevision.model.fused import (  # need Triton, part of CUDA's torch
        FrugalMLP,
        FusedMLP,
        FusedNorm,
        fused_add_norm,
        fused_attention_inputs,
        fused_bias_add,
        fused_fork_norm,
    )

    fused = replace(
        TORCH,
        norm=FusedNorm,
        rotate=rotary,
        scatter=scatter_features,
        core_attention=core_attention(attention),
        mlp=FrugalMLP if "activation" in recompute_modules else FusedMLP,
        bias_add=fused_bias_add,
        fork_norm=fused_fork_norm,
        add_norm=fused_add_norm,
        attention_inputs=fused_attention_inputs,
        inputs_add_bias=True,
    )
    if backend != TRANSFORMER_ENGINE:
        return fused
    return replace(
        fused,
        column_linear=te.TEColumnParallelLinear,
        row_linear=te.TERowParallelLinear,
        norm=te.TENorm,
        norm_linear=te.TELayerNormColumnParallelLinear,
    )


def core_attention(attention: str) -> type | ModuleSpec:
    """The module of an attention that `resolve_attention` names."""
    if attention == TRANSFORMER_ENGINE:
        return te.TEDotProductAttention
    if attention == FLASH_ATTN_4:
        return ModuleSpec(module=SegmentAttention, params={"attend": flash_attn_4})
    return SegmentAttention


def block_spec(
    modules: Modules,
    num_layers: int,
    mask: AttnMaskType,
    *,
    qk_norm: bool = False,
    groups: ProcessGroupCollection | None = None,
) -> TransformerBlockSubmodules:
    """Spec of `num_layers` pre-norm transformer layers with self-attention and an MLP.

    `mask` is `causal` for language and `no_mask` for vision; packed segments never see each other in either. `groups`
    are those of the block that is built of it, where they are not the model's.
    """
    fused = modules.norm_linear is not None
    column = modules.norm_linear or modules.column_linear
    head_norm = modules.norm if qk_norm else IdentityOp
    linears = MLPSubmodules(linear_fc1=column, linear_fc2=modules.row_linear)
    # Megatron's layer hands its group to the class MLP, and to no class that is derived of it.
    own = {"tp_group": groups.tp} if groups is not None and modules.mlp is not MLP else {}
    rotated: dict[str, Any] = {"rotate": modules.rotate}
    if not fused:
        rotated |= {"inputs": modules.attention_inputs, "adds_bias": modules.inputs_add_bias}
    layer = ModuleSpec(
        module=TransformerLayer if fused else plain.Layer,
        params={} if fused else {"fork": modules.fork_norm, "add": modules.add_norm},
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp if fused else modules.norm,
            self_attention=ModuleSpec(
                module=RotarySelfAttention if fused else plain.SegmentSelfAttention,
                params={"attn_mask_type": mask, **rotated},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=modules.core_attention,
                    linear_proj=modules.row_linear,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=modules.bias_add,
            pre_mlp_layernorm=IdentityOp if fused else modules.norm,
            mlp=ModuleSpec(module=modules.mlp, submodules=linears, params=own),
            mlp_bda=modules.bias_add,
            sharded_state_dict_keys_map={}
            if fused
            else {
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=modules.norm)
