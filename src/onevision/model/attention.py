"""Attention over packed segments with PyTorch's kernels: a segment sees itself and nothing else.

On a GPU in BF16 it is PyTorch's flash attention for segments of any lengths. Elsewhere segments of equal length are
computed as one batch of the scaled dot product. Neither has a mask or padding: what one sample computes cannot depend
on another, and the gradient across samples is exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.rotary import rotate

Rotate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LengthGroups:
    """Segments grouped by length.

    order: int64 [T], rows sorted by (segment length, segment); inverse: its inverse permutation;
    groups: (number of segments, length) in that order.
    """

    order: Tensor
    inverse: Tensor
    groups: tuple[tuple[int, int], ...]


@dataclass
class SegmentParams(PackedSeqParams):
    """`PackedSeqParams` in `thd` layout with the lengths of the segments, which the host knows: nothing waits for the
    device."""

    lengths: Tensor | None = None  # int64 [S] on the CPU

    @cached_property
    def by_length(self) -> LengthGroups:
        """The segments grouped by length, on the device of cu_seqlens."""
        assert self.lengths is not None
        lengths, device = self.lengths, self.cu_seqlens_q.device
        by_length = torch.argsort(lengths, stable=True)
        sorted_lengths = lengths[by_length]
        ends, sorted_ends = lengths.cumsum(0), sorted_lengths.cumsum(0)
        starts = torch.repeat_interleave((ends - lengths)[by_length], sorted_lengths)
        within = torch.arange(int(ends[-1])) - torch.repeat_interleave(sorted_ends - sorted_lengths, sorted_lengths)
        order = starts + within
        values, counts = torch.unique_consecutive(sorted_lengths, return_counts=True)
        groups = tuple(zip(counts.tolist(), values.tolist(), strict=True))
        return LengthGroups(order.to(device), torch.argsort(order).to(device), groups)


def segment_params(cu_seqlens: Tensor, device: torch.device) -> SegmentParams:
    """Packed-sequence parameters of `cu_seqlens` (int32 [S+1], strictly increasing, first 0) for tensors on `device`.

    Where cu_seqlens lies on a GPU, this waits for it.
    """
    lengths = cu_seqlens.to("cpu", torch.int64).diff()
    on_device = to_device(cu_seqlens, device)
    longest = int(lengths.max())
    return SegmentParams(
        qkv_format="thd",
        cu_seqlens_q=on_device,
        cu_seqlens_kv=on_device,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        lengths=lengths,
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on `device`, without waiting for what the device is computing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class RotarySelfAttention(SelfAttention):
    """Megatron's `SelfAttention`, whose `rotary_pos_emb` are the angles of the tokens, float32 [T, d/2]."""

    def __init__(self, *args: Any, rotate: Rotate = rotate, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rotate = rotate
        self._angles: Tensor | None = None  # of the pass that is being computed

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        key_value_states: Tensor | None = None,
        inference_context: Any = None,
        rotary_pos_emb: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Output [T, 1, H] and bias, as Megatron's."""
        self._angles = rotary_pos_emb
        try:
            return super().forward(hidden_states, attention_mask, key_value_states, inference_context, **others)
        finally:
            self._angles = None

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, 1, h, d], k and v [T, 1, g, d]; q and k are normalised and turned."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        query, key = self.rotate(query.squeeze(1), key.squeeze(1), self._angles)
        return query[:, None], key[:, None], value


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
        assert packed_seq_params is not None, "only packed input is supported"
        causal = (attn_mask_type or self.attn_mask_type) == AttnMaskType.causal
        return attention_for(query)(query, key, value, packed_seq_params, causal, self.softmax_scale)


def attention_for(query: Tensor) -> Callable[..., Tensor]:
    """The attention for packed tensors like this."""
    return flash if query.is_cuda and query.dtype == torch.bfloat16 else grouped


def flash(query: Tensor, key: Tensor, value: Tensor, params: SegmentParams, causal: bool, scale: float) -> Tensor:
    """Attention output [T, h*d] by PyTorch's flash attention, for FP16 and BF16 on a GPU.

    The operator stands below `torch.nn.attention.varlen.varlen_attn`, whose arguments differ between versions of
    PyTorch; it takes fewer heads of k and v than of q in all of them.
    """
    longest = params.max_seqlen_q
    output = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        params.cu_seqlens_q,
        params.cu_seqlens_kv,
        longest,
        longest,
        0.0,
        causal,
        False,
        scale=scale,
    )[0]
    return output.flatten(1)


def grouped(query: Tensor, key: Tensor, value: Tensor, params: SegmentParams, causal: bool, scale: float) -> Tensor:
    """Attention output [T, h*d] by the scaled dot product, of any dtype on any device, a length at a time."""
    plan = params.by_length
    query, key, value = (x.index_select(0, plan.order) for x in (query, key, value))
    outputs, first = [], 0
    for count, length in plan.groups:
        rows = slice(first, first + count * length)
        q, k, v = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).reshape(count * length, -1))
        first += count * length
    return torch.cat(outputs).index_select(0, plan.inverse)
