"""What PyTorch alone needs on a GPU to be fast: elementwise chains compiled into one kernel each.

Compiled when they first run, which takes seconds; the vision tower's number of rows differs from batch to batch and is
no reason to compile again. Nothing here is used on a CPU, where the same formulas run uncompiled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


_compiled_rms_norm = torch.compile(_rms_norm, dynamic=True)
_compiled_layer_norm = torch.compile(_layer_norm, dynamic=True)
_compiled_bias_gelu = torch.compile(_bias_gelu, dynamic=True)


class FusedRMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Like x [..., hidden]."""
        return _compiled_rms_norm(x, self.weight, self.eps)


class FusedLayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Like x [..., hidden]."""
        return _compiled_layer_norm(x, self.weight, self.bias, self.eps)


class FusedNorm:
    """`FusedLayerNorm` or `FusedRMSNorm`, as `config.normalization` says, with Megatron's norm signature."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:
        norm = {"LayerNorm": FusedLayerNorm, "RMSNorm": FusedRMSNorm}[config.normalization]
        return norm(hidden_size, eps=eps, dtype=config.params_dtype)


class GeluMLP(MLP):
    """Megatron's MLP with exact GELU, whose bias and GELU are one kernel. (Megatron's own fusion is another function:
    the approximation of GELU by tanh.)"""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """Output and its bias, which is not added yet."""
        inner, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(_compiled_bias_gelu(inner, bias))
