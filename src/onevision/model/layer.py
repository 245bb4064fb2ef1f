"""A transformer layer of packed samples, without what Megatron's looks for on the way and this model has not: caches of
its inference engine, offloading, cross attention, experts, dropout. Parameters and checkpoint keys are Megatron's.

It is written so that a GPU can take what stands between two products as one kernel (`onevision.model.fused`): the sum
with the residual and the norm of it; bias, norms and rotary embedding of q and k. Elsewhere these are PyTorch's pieces,
in the order in which Megatron has them: not one bit differs. Transformer Engine, whose norms are part of its linear
layers, has Megatron's layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from onevision.model.attention import Rotate, SegmentParams

Residual = tuple[Tensor, Tensor]  # what goes on beside a norm, and the norm


def fork_norm(norm: torch.nn.Module, hidden: Tensor) -> Residual:
    """hidden, and its norm."""
    return hidden, norm(hidden)


def add_norm(norm: torch.nn.Module, output: Tensor, bias: Tensor | None, residual: Tensor) -> Residual:
    """residual + (output + bias), and its norm."""
    hidden = residual + (output if bias is None else output + bias)
    return hidden, norm(hidden)


def attention_inputs(
    attention: SegmentSelfAttention, mixed: Tensor, bias: Tensor | None, angles: Tensor, learned: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, h, d], k and v [T, g, d] of the product [T, 1, g * (h/g + 2) * d]: q and k normed, if they have norms, and
    turned. The bias is added already, and None."""
    groups, width = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head
    parts = mixed.view(*mixed.shape[:2], groups, -1)
    query, key, value = torch.split(parts, [parts.shape[-1] - 2 * width, width, width], dim=3)
    query = attention.q_layernorm(query.reshape(*query.shape[:2], -1, width))
    query, key = attention.rotate(query.squeeze(1), attention.k_layernorm(key).squeeze(1), angles, learned)
    return query, key, value.squeeze(1)


class SegmentSelfAttention(SelfAttention):
    """Megatron's `SelfAttention` for packed segments, with rotary angles float32 [T, d/2].

    `inputs` makes q, k and v as `attention_inputs` does; with `adds_bias` it is given the product without its bias.
    `Layer` calls its steps.
    """

    def __init__(
        self,
        *args: Any,
        inputs: Callable[..., tuple[Tensor, Tensor, Tensor]],
        rotate: Rotate,
        adds_bias: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.inputs, self.rotate = inputs, rotate
        if adds_bias:
            self.linear_qkv.skip_bias_add = True

    def project(self, hidden_states: Tensor, angles: Tensor, learned: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, h, d], k and v [T, g, d] of hidden states [T, 1, H], as attention takes them."""
        mixed, bias = self.linear_qkv(hidden_states)
        return self.inputs(self, mixed, bias, angles, learned)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, segments: SegmentParams) -> Tensor:
        """Attention output [T, h*d]."""
        again = self.checkpoint_core_attention and self.training
        core = self._checkpointed_attention_forward if again else self.core_attention
        return core(query, key, value, None, attn_mask_type=self.attn_mask_type, packed_seq_params=segments)


class Layer(TransformerLayer):
    """Megatron's `TransformerLayer` with self-attention and an MLP. `fork` and `add` are as `fork_norm`, `add_norm`."""

    def __init__(self, *args: Any, fork: Callable[..., Residual], add: Callable[..., Residual], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fork, self.add = fork, add
        if self.config.tensor_model_parallel_size == 1:
            # Nobody shares a product: four functions a layer, each way, would but hand on what they get.
            for column in (self.self_attention.linear_qkv, self.mlp.linear_fc1):
                column.disable_grad_reduce = True
            for row in (self.self_attention.linear_proj, self.mlp.linear_fc2):
                row.explicit_expert_comm = True

    def before_attention(
        self, hidden: Tensor, angles: Tensor, learned: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The residual [T, 1, H] of hidden states [T, 1, H], and q, k and v of their norm."""
        residual, normed = self.fork(self.input_layernorm, hidden)
        return residual, *self.self_attention.project(normed, angles, learned)

    def after_attention(self, attended: Tensor, residual: Tensor) -> Tensor:
        """Hidden states [T, 1, H] of the attention's output [T, h*d] and the residual."""
        output, bias = self.self_attention.linear_proj(attended[:, None])
        residual, normed = self.add(self.pre_mlp_layernorm, output, bias, residual)
        done = tensor_parallel.checkpoint(self.mlp, False, normed) if self.recompute_mlp else self.mlp(normed)
        return self.mlp_bda(self.training, False)(done, residual, 0.0)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: SegmentParams,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Hidden states [T, 1, H], and nothing in the place of the context of cross attention."""
        residual, *heads = self.before_attention(hidden_states, rotary_pos_emb, packed_seq_params.learned)
        return self.after_attention(self.self_attention.attend(*heads, packed_seq_params), residual), None
