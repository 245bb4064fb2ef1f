"""One Triton kernel each way between the product that makes q, k and v, and attention.

A row of the product has, for each of G groups, R heads of q, one of k and one of v, of D values each: `mixed`
[T, G, R + 2, D]. What attention is given:

    vision      q, k and v get their bias; q and k are turned. It is done in place: attention keeps the product's memory
                and no copies of q and k beside it, 2 of 5 widths a row.
    language    q and k are normed (RMSNorm over D) and turned. The product stays, as the norm's gradient needs it; v is
                a view of it.

Each value is read once and written once, where PyTorch's pieces (bias, copy of q, two norms, rotary embedding; backward
also the concatenation of three gradients and the sum for the bias) pass over them two to four times. Computed in
float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from onevision.model.triton_kernels import multiprocessors

_VALUES = 1024  # pairs of a tile: eight a thread of four warps, 16 bytes of each half


@triton.jit(do_not_specialize=["tokens"])  # it is another one each time
def _attention_inputs(mixed, q, k, q_weight, k_weight, bias, angles, tokens, eps, G: tl.constexpr, R: tl.constexpr,
                      D: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, NORMED: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    pair = tl.arange(0, HALF)
    mask = (row < tokens)[:, None] & (pair < D // 2)[None, :]
    token = row.to(tl.int64)[:, None]
    angle = tl.load(angles + token * (D // 2) + pair[None, :], mask, 0.0)
    cosine, sine = tl.cos(angle), tl.sin(angle)
    for slot in tl.static_range(R + 2):
        if slot <= R or not NORMED:
            place = ((token * G + group) * (R + 2) + slot) * D + pair[None, :]
            low = tl.load(mixed + place, mask, 0.0).to(tl.float32)
            high = tl.load(mixed + place + D // 2, mask, 0.0).to(tl.float32)
            if NORMED:
                weight = q_weight if slot < R else k_weight
                factor = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / D + eps)[:, None]
                low = low * factor * tl.load(weight + pair, pair < D // 2, 0.0).to(tl.float32)[None, :]
                high = high * factor * tl.load(weight + D // 2 + pair, pair < D // 2, 0.0).to(tl.float32)[None, :]
                if slot < R:
                    out = q + ((token * G + group) * R + slot) * D + pair[None, :]
                else:
                    out = k + (token * G + group) * D + pair[None, :]
            else:
                added = bias + (group * (R + 2) + slot) * D + pair
                low += tl.load(added, pair < D // 2, 0.0).to(tl.float32)[None, :]
                high += tl.load(added + D // 2, pair < D // 2, 0.0).to(tl.float32)[None, :]
                out = mixed + place
            if slot <= R:
                turned = low * cosine - high * sine
                high = high * cosine + low * sine
                low = turned
            tl.store(out, low.to(out.dtype.element_ty), mask)
            tl.store(out + D // 2, high.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["tokens"])  # it is another one each time
def _attention_inputs_backward(grad_q, grad_k, grad_v, mixed, q_weight, k_weight, angles, grad_mixed, parts, tokens,
                               eps, G: tl.constexpr, R: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
                               ROWS: tl.constexpr, NORMED: tl.constexpr):
    """`parts` [programs, 3 * D]: sums of one program for the weights of the norms of q and k; or without norms, of the
    group's part of the bias (then R is 1)."""
    group = tl.program_id(1)
    pair = tl.arange(0, HALF)
    inside = pair < D // 2
    q_low, q_high = tl.zeros((HALF,), tl.float32), tl.zeros((HALF,), tl.float32)
    k_low, k_high = tl.zeros((HALF,), tl.float32), tl.zeros((HALF,), tl.float32)
    v_low, v_high = tl.zeros((HALF,), tl.float32), tl.zeros((HALF,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < tokens)[:, None] & inside[None, :]
        token = row.to(tl.int64)[:, None]
        angle = tl.load(angles + token * (D // 2) + pair[None, :], mask, 0.0)
        cosine, sine = tl.cos(angle), tl.sin(angle)
        for slot in tl.static_range(R + 2):
            place = ((token * G + group) * (R + 2) + slot) * D + pair[None, :]
            if slot < R:
                above = grad_q + ((token * G + group) * R + slot) * D + pair[None, :]
            elif slot == R:
                above = grad_k + (token * G + group) * D + pair[None, :]
            else:
                above = grad_v + (token * G + group) * D + pair[None, :]
            low = tl.load(above, mask, 0.0).to(tl.float32)
            high = tl.load(above + D // 2, mask, 0.0).to(tl.float32)
            if slot <= R:
                turned = low * cosine + high * sine
                high = high * cosine - low * sine
                low = turned
                if NORMED:
                    weight = q_weight if slot < R else k_weight
                    x_low = tl.load(mixed + place, mask, 0.0).to(tl.float32)
                    x_high = tl.load(mixed + place + D // 2, mask, 0.0).to(tl.float32)
                    factor = tl.rsqrt((tl.sum(x_low * x_low, 1) + tl.sum(x_high * x_high, 1)) / D + eps)[:, None]
                    x_low, x_high = x_low * factor, x_high * factor
                    if slot < R:
                        q_low += tl.sum(low * x_low, 0)
                        q_high += tl.sum(high * x_high, 0)
                    else:
                        k_low += tl.sum(low * x_low, 0)
                        k_high += tl.sum(high * x_high, 0)
                    low = low * tl.load(weight + pair, inside, 0.0).to(tl.float32)[None, :]
                    high = high * tl.load(weight + D // 2 + pair, inside, 0.0).to(tl.float32)[None, :]
                    share = ((tl.sum(low * x_low, 1) + tl.sum(high * x_high, 1)) / D)[:, None]
                    low, high = (low - x_low * share) * factor, (high - x_high * share) * factor
            if not NORMED:
                if slot < R:
                    q_low += tl.sum(low, 0)
                    q_high += tl.sum(high, 0)
                elif slot == R:
                    k_low += tl.sum(low, 0)
                    k_high += tl.sum(high, 0)
                else:
                    v_low += tl.sum(low, 0)
                    v_high += tl.sum(high, 0)
            tl.store(grad_mixed + place, low.to(grad_mixed.dtype.element_ty), mask)
            tl.store(grad_mixed + place + D // 2, high.to(grad_mixed.dtype.element_ty), mask)
    sums = parts + (tl.program_id(0) * G + group) * (3 * D) + pair
    tl.store(sums, q_low, inside)
    tl.store(sums + D // 2, q_high, inside)
    tl.store(sums + D, k_low, inside)
    tl.store(sums + D + D // 2, k_high, inside)
    if not NORMED:
        tl.store(sums + 2 * D, v_low, inside)
        tl.store(sums + 2 * D + D // 2, v_high, inside)


@triton.jit
def _learned_angles(q, k, grad_q, grad_k, learned, grad_angles, q_heads, k_heads, q_stride, k_stride, q_head, k_head,
                    D: tl.constexpr, HALF: tl.constexpr):
    """A row of grad_angles for each learned token: the sum over heads of grad_high * low - grad_low * high."""
    token = tl.load(learned + tl.program_id(0))
    pair = tl.arange(0, HALF)
    inside = pair < D // 2
    total = tl.zeros((HALF,), tl.float32)
    for head in range(q_heads + k_heads):
        if head < q_heads:
            value = q + token * q_stride + head * q_head + pair
            above = grad_q + (token * q_heads + head) * D + pair
        else:
            value = k + token * k_stride + (head - q_heads) * k_head + pair
            above = grad_k + (token * k_heads + head - q_heads) * D + pair
        low, high = tl.load(value, inside, 0.0).to(tl.float32), tl.load(value + D // 2, inside, 0.0).to(tl.float32)
        of_low = tl.load(above, inside, 0.0).to(tl.float32)
        of_high = tl.load(above + D // 2, inside, 0.0).to(tl.float32)
        total += of_high * low - of_low * high
    tl.store(grad_angles + token * (D // 2) + pair, total, inside)


class _AttentionInputs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mixed: Tensor,
        groups: int,
        width: int,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float,
        bias: Tensor | None,
        angles: Tensor,
        learned: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens = mixed.shape[0]
        parts = mixed.detach().view(tokens, groups, -1, width)
        heads = parts.shape[2] - 2
        half = triton.next_power_of_2(width // 2)
        rows = max(1, _VALUES // half)
        normed = q_weight is not None
        if normed:
            q = mixed.new_empty(tokens, groups * heads, width)
            k = mixed.new_empty(tokens, groups, width)
        else:
            q, k = parts[:, :, 0], parts[:, :, 1]
        # Pointers that are not looked at are those of something that is there.
        weights = (q_weight, k_weight) if normed else (bias, bias)
        if tokens:
            _attention_inputs[(triton.cdiv(tokens, rows), groups)](
                mixed, q, k, *weights, bias if bias is not None else q_weight, angles, tokens, eps, groups, heads,
                width, half, rows, normed, num_warps=4,
            )
        turned = (q, k) if angles.requires_grad else ()
        ctx.save_for_backward(angles, learned, q_weight, k_weight, *([mixed] if normed else []), *turned)
        ctx.layout = (groups, heads, width, half, rows, normed, eps, mixed.shape)
        return q, k, parts[:, :, -1]

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        angles, learned, q_weight, k_weight, *rest = ctx.saved_tensors
        groups, heads, width, half, rows, normed, eps, shape = ctx.layout
        grad_q, grad_k, grad_v = grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()
        tokens = shape[0]
        grad_mixed = grad_q.new_empty(shape)
        programs = max(1, min(triton.cdiv(tokens, rows), 8 * multiprocessors(grad_q.device) // groups))
        parts = torch.empty(programs, groups, 3, width, dtype=torch.float32, device=grad_q.device)
        if not tokens:
            parts.zero_()
        else:
            weights = (q_weight, k_weight) if normed else (angles, angles)
            _attention_inputs_backward[(programs, groups)](
                grad_q, grad_k, grad_v, rest[0] if normed else grad_mixed, *weights, angles, grad_mixed, parts, tokens,
                eps, groups, heads, width, half, rows, normed, num_warps=4,
            )
        of_q = of_k = of_bias = of_angles = None
        if normed:
            sums = parts[:, :, :2].sum((0, 1)).to(q_weight.dtype)
            of_q, of_k = sums[0], sums[1]
        elif ctx.needs_input_grad[6]:
            of_bias = parts.sum(0).flatten().to(grad_q.dtype)
        if ctx.needs_input_grad[7]:
            q, k = rest[-2:]
            of_angles = torch.zeros_like(angles)
            if len(learned):
                _learned_angles[(len(learned),)](
                    q, k, grad_q, grad_k, learned, of_angles, q.shape[1], k.shape[1], q.stride(0), k.stride(0),
                    q.stride(1), k.stride(1), width, half, num_warps=1,
                )
        return grad_mixed, None, None, of_q, of_k, None, of_bias, of_angles, None


def attention_inputs(
    mixed: Tensor,
    groups: int,
    width: int,
    angles: Tensor,
    *,
    norms: tuple[Tensor, Tensor, float] | None = None,
    bias: Tensor | None = None,
    learned: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, G*R, D], k and v [T, G, D] as attention takes them; their last stride is 1.

    Args:
        mixed: [T, 1, G * (R + 2) * D], contiguous, BF16 or FP32; without norms it is overwritten, and must be a result
            that nobody else looks at, its own backward pass neither.
        angles: float32 [T, D/2], contiguous.
        norms: weights [D] of the RMSNorms of q and k, and their epsilon.
        bias: [G * (R + 2) * D], in the place of norms; R is 1.
        learned: int64 [N], the tokens whose angles have a gradient, if angles require one; None: all.
    """
    assert (norms is None) != (bias is None) and (norms is not None or mixed.shape[-1] == 3 * groups * width)
    q_weight, k_weight, eps = norms or (None, None, 0.0)
    if learned is None and angles.requires_grad:
        learned = torch.arange(len(angles), device=angles.device)
    return _AttentionInputs.apply(mixed, groups, width, q_weight, k_weight, eps, bias, angles, learned)
