"""Layers of the model whose elementwise parts are one kernel each (`onevision.model.triton_kernels`), for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.layer import Residual, SegmentSelfAttention
from onevision.model.triton_attention import attention_inputs
from onevision.model.triton_kernels import (
    add_norm,
    bias_add,
    bias_gelu,
    bias_gelu_into,
    fork_norm,
    norm,
    swiglu,
    swiglu_into,
)


class FusedRMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Like x [..., hidden]."""
        return norm(x, self.weight, None, self.eps)


class FusedLayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Like x [..., hidden]."""
        return norm(x, self.weight, self.bias, self.eps)


class FusedNorm:
    """`FusedLayerNorm` or `FusedRMSNorm`, as `config.normalization` says, with Megatron's norm signature."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:
        fused = {"LayerNorm": FusedLayerNorm, "RMSNorm": FusedRMSNorm}[config.normalization]
        norm: torch.nn.Module = fused(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # as in `onevision.model.specs.marked`
        return norm


class FusedMLP(MLP):
    """Megatron's MLP with its activation in one kernel: SwiGLU without a bias, or exact GELU with one. (Megatron's own
    fusion of the latter is another function: the approximation of GELU by tanh.)"""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """Output and its bias, which is not added yet."""
        inner, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(activation(inner, bias))


def activation(inner: Tensor, bias: Tensor | None) -> Tensor:
    """SwiGLU of inner [..., 2F], or GELU(inner + bias) of inner [..., F]."""
    return swiglu(inner) if bias is None else bias_gelu(inner, bias)


class FrugalMLP(FusedMLP):
    """The same with `activation` among `model.recompute_modules`: what goes into the second product is not kept for the
    backward pass but made again, which costs one elementwise kernel. Where the whole MLP is recomputed that is done
    already, and nothing more is."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        selective = config.recompute_granularity == "selective"
        self._recomputed = selective and "mlp" in (config.recompute_modules or ())

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """Output and its bias, which is not added yet."""
        inner, bias = self.linear_fc1(hidden_states)
        active = activation(inner, bias)
        output, output_bias = self.linear_fc2(active)
        if output.requires_grad and not self._recomputed:
            storage, inner = active.untyped_storage(), inner.detach()
            # A hook lives as long as the graph: Megatron's schedule keeps the loss of a micro-batch until that of the
            # next one is there. What a hook held until then was 9 of an H100's 79 GB in stage 1.5 of 1.7b.
            once = [(storage.size(), active.detach(), inner, bias)]

            def restore(_: Tensor) -> None:
                size, active, inner, bias = once.pop()
                active.untyped_storage().resize_(size)
                if bias is None:
                    swiglu_into(active, inner)
                else:
                    bias_gelu_into(active, inner, bias)

            storage.resize_(0)
            output.register_hook(restore)  # runs before the gradients of the product are made
        return output, output_bias


def fused_bias_add(training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
    """What Megatron calls after attention and MLP: output and bias are added to the residual. There is no dropout."""

    def add(output_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
        output, bias = output_and_bias
        return residual + output if bias is None else bias_add(output, bias, residual)

    return add


def fused_fork_norm(norm: FusedRMSNorm | FusedLayerNorm, hidden: Tensor) -> Residual:
    """As `onevision.model.layer.fork_norm`: one kernel forward, and one backward with the sum of both gradients."""
    return fork_norm(hidden, norm.weight, getattr(norm, "bias", None), norm.eps)


def fused_add_norm(
    norm: FusedRMSNorm | FusedLayerNorm, output: Tensor, bias: Tensor | None, residual: Tensor
) -> Residual:
    """As `onevision.model.layer.add_norm`, one kernel each way; the gradient of the bias is summed in it too."""
    return add_norm(output, bias, residual, norm.weight, getattr(norm, "bias", None), norm.eps)


def fused_attention_inputs(
    attention: SegmentSelfAttention, mixed: Tensor, bias: Tensor | None, angles: Tensor, learned: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `onevision.model.layer.attention_inputs`, one kernel each way, which adds the bias too."""
    q_norm, k_norm = attention.q_layernorm, attention.k_layernorm
    return attention_inputs(
        mixed,
        attention.num_query_groups_per_partition,
        attention.hidden_size_per_attention_head,
        angles,
        norms=(q_norm.weight, k_norm.weight, q_norm.eps) if isinstance(q_norm, FusedRMSNorm) else None,
        bias=bias,
        learned=learned,
    )
