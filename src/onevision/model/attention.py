"""Attention over packed segments: a segment sees itself and nothing else.

On a GPU in BF16 it is PyTorch's flash attention for segments of any lengths, or another that the recipe names
(`model.attention`: `onevision.model.flash_attn_4`). Elsewhere segments of equal length are computed as one batch of the
scaled dot product. None has padding: what one sample computes cannot depend on another,
and the gradient across samples is exactly zero. With context parallelism the queries are pieces of segments, whose keys
and values come from all ranks (`onevision.model.context`); in generation they are the newest tokens of segments, whose
older ones are remembered (`onevision.model.cache`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.cache import CachedRows
from onevision.model.context import pieces
from onevision.model.rotary import rotate

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LengthGroups:
    """Segments grouped by the lengths of their queries and keys.

    order, key_order: int64 [T] and [K], rows sorted by these lengths and the segment; inverse: of `order`;
    groups: (number of segments, queries, keys) in that order.
    """

    order: Tensor
    inverse: Tensor
    key_order: Tensor
    groups: tuple[tuple[int, int, int], ...]


@dataclass
class SegmentParams(PackedSeqParams):
    """`PackedSeqParams` in `thd` layout with the lengths of the segments, which the host knows: nothing waits for the
    device."""

    lengths: Tensor | None = None  # int64 [S] on the CPU
    key_lengths: Tensor | None = None  # int64 [S] on the CPU
    learned: Tensor | None = None  # int64 [N], the tokens whose rotary angles have a gradient; None: all
    key_rows: Tensor | None = None  # int64 [K], of the keys that `context` gathers
    context: dist.ProcessGroup | None = None  # ranks that share the tokens
    cached: CachedRows | None = None  # where keys and values are remembered

    @cached_property
    def by_length(self) -> LengthGroups:
        """The segments grouped by length, on the device of cu_seqlens."""
        assert self.lengths is not None and self.key_lengths is not None
        lengths, key_lengths, device = self.lengths, self.key_lengths, self.cu_seqlens_q.device
        by_length = torch.argsort(lengths * (int(key_lengths.max()) + 1) + key_lengths, stable=True)
        order = _rows_of(by_length, lengths)
        key_order = order if torch.equal(lengths, key_lengths) else _rows_of(by_length, key_lengths)
        pairs = torch.stack([lengths, key_lengths], 1)[by_length]
        values, counts = torch.unique_consecutive(pairs, return_counts=True, dim=0)
        groups = tuple((count, *pair) for count, pair in zip(counts.tolist(), values.tolist(), strict=True))
        return LengthGroups(order.to(device), torch.argsort(order).to(device), key_order.to(device), groups)


def _rows_of(segments: Tensor, lengths: Tensor) -> Tensor:
    """The rows of `segments` (int64 [S], a permutation), one after the other, where segment s has lengths[s] rows."""
    ends, wanted = lengths.cumsum(0), lengths[segments]
    wanted_ends = wanted.cumsum(0)
    starts = torch.repeat_interleave((ends - lengths)[segments], wanted)
    return starts + torch.arange(int(ends[-1])) - torch.repeat_interleave(wanted_ends - wanted, wanted)


def segment_params(
    cu_seqlens: Tensor,
    device: torch.device,
    learned: Tensor | None = None,
    context: dist.ProcessGroup | None = None,
) -> SegmentParams:
    """Packed-sequence parameters of `cu_seqlens` (int32 [S+1], strictly increasing, first 0) for tensors on `device`,
    of whose tokens those in `learned` (int64 [N]) have learned rotary angles.

    `context`: ranks that share the tokens; the parameters are those of this rank's pieces of the segments.
    Where cu_seqlens lies on a GPU, this waits for it.
    """
    bounds = cu_seqlens.to("cpu", torch.int64)
    if context is not None and context.size() > 1:
        own = pieces(bounds, context.rank(), context.size())
        lengths, key_lengths, key_rows = own.lengths, own.key_lengths, to_device(own.key_rows, device)
    else:
        lengths = key_lengths = bounds.diff()
        key_rows = context = None
    on_device = to_device(_bounds(lengths), device)
    return SegmentParams(
        qkv_format="thd",
        cu_seqlens_q=on_device,
        cu_seqlens_kv=on_device if key_rows is None else to_device(_bounds(key_lengths), device),
        max_seqlen_q=int(lengths.max()),
        max_seqlen_kv=int(key_lengths.max()),
        lengths=lengths,
        key_lengths=key_lengths,
        learned=None if learned is None else to_device(learned, device),
        key_rows=key_rows,
        context=context,
    )


def cached_params(lengths: Tensor, key_lengths: Tensor, cached: CachedRows, device: torch.device) -> SegmentParams:
    """Packed-sequence parameters of segments that have lengths (int64 [S], on the host) new tokens, and with the
    remembered ones before them key_lengths."""
    on_device = to_device(_bounds(lengths), device)
    return SegmentParams(
        qkv_format="thd",
        cu_seqlens_q=on_device,
        cu_seqlens_kv=on_device if cached.seen is None else to_device(_bounds(key_lengths), device),
        max_seqlen_q=int(lengths.max()),
        max_seqlen_kv=int(key_lengths.max()),
        lengths=lengths,
        key_lengths=key_lengths,
        cached=cached,
    )


def _bounds(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on `device`, without waiting for what the device is computing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# q [T, h, d], k and v [K, g, d], their segments, whether the mask is causal, the scale of the products -> [T, h*d]
Attend = Callable[[Tensor, Tensor, Tensor, SegmentParams, bool, float], Tensor]


class RotarySelfAttention(SelfAttention):
    """Megatron's `SelfAttention`, whose `rotary_pos_emb` are the angles of the tokens, float32 [T, d/2]."""

    def __init__(self, *args: Any, rotate: Rotate = rotate, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rotate = rotate
        self._turns: tuple[Tensor | None, Tensor | None] = (None, None)  # angles, of which are learned: of this pass

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        key_value_states: Tensor | None = None,
        inference_context: Any = None,
        rotary_pos_emb: Tensor | None = None,
        *,
        packed_seq_params: SegmentParams | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Output [T, 1, H] and bias, as Megatron's."""
        assert packed_seq_params is not None, "only packed input is supported"
        self._turns = rotary_pos_emb, packed_seq_params.learned
        others["packed_seq_params"] = packed_seq_params
        try:
            return super().forward(hidden_states, attention_mask, key_value_states, inference_context, **others)
        finally:
            self._turns = None, None

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, 1, h, d], k and v [T, 1, g, d]; q and k are normalised and turned."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        query, key = self.rotate(query.squeeze(1), key.squeeze(1), *self._turns)
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
        attend: Attend | None = None,
        **_: Any,
    ) -> None:
        """`attend` is the attention that computes; None: PyTorch's for the tensors that come."""
        super().__init__(config=config)
        self.attend = attend
        self.layer_number = layer_number
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
        if packed_seq_params.context is not None:
            assert packed_seq_params.key_rows is not None and causal, "tokens are shared in causal attention only"
            both = gather_from_sequence_parallel_region(
                torch.cat([key, value], dim=1), group=packed_seq_params.context
            ).index_select(0, packed_seq_params.key_rows)
            key, value = both.chunk(2, dim=1)
        if packed_seq_params.cached is not None:
            key, value = packed_seq_params.cached.extend(self.layer_number, key, value)
        attend = self.attend or attention_for(query)
        return attend(query, key, value, packed_seq_params, causal, self.softmax_scale)


def attention_for(query: Tensor) -> Attend:
    """PyTorch's attention for packed tensors like this."""
    return flash if query.is_cuda and query.dtype == torch.bfloat16 else grouped


def flash(query: Tensor, key: Tensor, value: Tensor, params: SegmentParams, causal: bool, scale: float) -> Tensor:
    """Attention output [T, h*d] by PyTorch's flash attention, for FP16 and BF16 on a GPU.

    The operator stands below `torch.nn.attention.varlen.varlen_attn`, whose arguments differ between versions of
    PyTorch; it takes fewer heads of k and v than of q in all of them. The arguments here are those of 2.11 and of 2.13,
    whose derivative is the same: with respect to q, k and v only (`derivatives.yaml`). The longest lengths are the
    host's and set the grid: rows beyond them would not be computed. Where a piece has fewer queries than keys, the last
    query sees the last key.
    """
    output = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        params.cu_seqlens_q,
        params.cu_seqlens_kv,
        params.max_seqlen_q,
        params.max_seqlen_kv,
        0.0,
        causal,
        False,
        scale=scale,
    )[0]
    return output.flatten(1)


def grouped(query: Tensor, key: Tensor, value: Tensor, params: SegmentParams, causal: bool, scale: float) -> Tensor:
    """Attention output [T, h*d] by the scaled dot product, of any dtype on any device, a length at a time."""
    plan = params.by_length
    query = query.index_select(0, plan.order)
    key, value = (x.index_select(0, plan.key_order) for x in (key, value))
    outputs, first, first_key = [], 0, 0
    for count, length, keys in plan.groups:
        rows, key_rows = (slice(start, start + count * each) for start, each in ((first, length), (first_key, keys)))
        q = query[rows].unflatten(0, (count, length)).transpose(1, 2)
        k, v = (x[key_rows].unflatten(0, (count, keys)).transpose(1, 2) for x in (key, value))
        mask = None
        if causal and keys > length > 1:  # the last query sees the last key
            mask = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal and keys == length,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outputs.append(out.transpose(1, 2).reshape(count * length, -1))
        first, first_key = rows.stop, key_rows.stop
    return torch.cat(outputs).index_select(0, plan.inverse)
