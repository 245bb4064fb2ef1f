"""Attention over packed segments with PyTorch's scaled dot product: a segment sees itself and nothing else.

Segments of equal length are computed as one batch, so there is neither a mask nor padding: what one sample computes
cannot depend on another, and the gradient across samples is exactly zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


@dataclass
class SegmentParams(PackedSeqParams):
    """`PackedSeqParams` in `thd` layout with the plan that groups its segments by length.

    order: int64 [T], rows sorted by (segment length, segment); inverse: its inverse permutation;
    groups: (number of segments, length) in that order.
    """

    order: Tensor | None = None
    inverse: Tensor | None = None
    groups: tuple[tuple[int, int], ...] = ()


def segment_params(cu_seqlens: Tensor) -> SegmentParams:
    """Packed-sequence parameters of `cu_seqlens` (int32 [S+1], strictly increasing, first 0), on its device."""
    bounds = cu_seqlens.to("cpu", torch.int64)
    lengths = bounds.diff()
    by_length = torch.argsort(lengths, stable=True)
    sorted_lengths = lengths[by_length]
    starts = torch.repeat_interleave(bounds[:-1][by_length], sorted_lengths)
    ends = sorted_lengths.cumsum(0)
    within = torch.arange(int(bounds[-1])) - torch.repeat_interleave(ends - sorted_lengths, sorted_lengths)
    order = starts + within
    values, counts = torch.unique_consecutive(sorted_lengths, return_counts=True)
    longest = int(lengths.max())
    return SegmentParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        order=order.to(cu_seqlens.device),
        inverse=torch.argsort(order).to(cu_seqlens.device),
        groups=tuple(zip(counts.tolist(), values.tolist(), strict=True)),
    )


class SegmentAttention(MegatronModule):
    """Core attention for Megatron's `SelfAttention` on packed (`thd`) input: q [T, h, d], k and v [T, g, d]."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: SegmentParams | None = None,
    ) -> Tensor:
        """Attention output [T, h*d]."""
        assert packed_seq_params is not None and packed_seq_params.order is not None, "only packed input is supported"
        causal = (attn_mask_type or self.attn_mask_type) == AttnMaskType.causal
        query, key, value = (x.index_select(0, packed_seq_params.order) for x in (query, key, value))
        outputs, first = [], 0
        for count, length in packed_seq_params.groups:
            rows = slice(first, first + count * length)
            q, k, v = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            outputs.append(out.transpose(1, 2).reshape(count * length, -1))
            first += count * length
        return torch.cat(outputs).index_select(0, packed_seq_params.inverse)
