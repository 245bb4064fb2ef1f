"""Triton kernels of what stands between the products of a layer, for a GPU: each reads its inputs and writes its
results once. Sums are in float32 and in a fixed order, results are rounded once.

    norm        RMSNorm and LayerNorm, forward and backward
    swiglu      SiLU(gate) * up of one product with both halves
    bias_gelu   exact GELU(x + bias)
    bias_add    x + bias + residual

PyTorch's compiler makes slower ones of the same formulas, for shapes that differ from batch to batch most of all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # values of a tile in registers


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU. Where Triton interprets its kernels on a CPU, one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit(do_not_specialize=["rows"])
def _norm_forward(x, weight, bias, out, mean, scale, added, residual, total, rows, eps, heads: tl.constexpr, stride,
                  head_stride, N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, LAYER: tl.constexpr,
                  ADD: tl.constexpr, BIASED: tl.constexpr):
    """With ADD, x (+ added where BIASED) + residual is `total`, of which the norm is taken."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < N)[None, :]
    start = (row // heads).to(tl.int64) * stride + (row % heads) * head_stride
    value = tl.load(x + start[:, None] + column[None, :], mask, 0.0).to(tl.float32)
    if ADD:
        place = row.to(tl.int64)[:, None] * N + column[None, :]
        if BIASED:
            value += tl.load(added + column, column < N, 0.0).to(tl.float32)[None, :]
        rounded = (value + tl.load(residual + place, mask, 0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask)
        value = tl.where(mask, rounded.to(tl.float32), 0.0)
    if LAYER:
        middle = tl.sum(value, 1) / N
        tl.store(mean + row, middle, row < rows)
        value = tl.where(mask, value - middle[:, None], 0.0)
    factor = tl.rsqrt(tl.sum(value * value, 1) / N + eps)
    tl.store(scale + row, factor, row < rows)
    value = value * factor[:, None] * tl.load(weight + column, column < N, 0.0).to(tl.float32)[None, :]
    if LAYER:
        value += tl.load(bias + column, column < N, 0.0).to(tl.float32)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * N + column[None, :], value.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows"])
def _norm_backward(grad, passed, x, weight, mean, scale, grad_x, weight_parts, bias_parts, added_parts, rows,
                   heads: tl.constexpr, stride, head_stride, N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                   LAYER: tl.constexpr, LEARNED: tl.constexpr, PASSED: tl.constexpr, BIASED: tl.constexpr):
    """With PASSED, grad_x has also the gradient that comes past the norm; BIASED sums the rows of grad_x."""
    part = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    factors = tl.load(weight + column, column < N, 0.0).to(tl.float32)[None, :]
    of_weight = tl.zeros((BLOCK,), tl.float32)
    of_bias = tl.zeros((BLOCK,), tl.float32)
    of_added = tl.zeros((BLOCK,), tl.float32)
    for tile in range(part, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < N)[None, :]
        start = (row // heads).to(tl.int64) * stride + (row % heads) * head_stride
        place = row.to(tl.int64)[:, None] * N + column[None, :]
        value = tl.load(x + start[:, None] + column[None, :], mask, 0.0).to(tl.float32)
        above = tl.load(grad + place, mask, 0.0).to(tl.float32)
        factor = tl.load(scale + row, row < rows, 0.0)
        if LAYER:
            value = tl.where(mask, value - tl.load(mean + row, row < rows, 0.0)[:, None], 0.0)
        value = value * factor[:, None]
        if LEARNED:
            of_weight += tl.sum(above * value, 0)
            if LAYER:
                of_bias += tl.sum(above, 0)
        above = above * factors
        result = above - value * (tl.sum(above * value, 1) / N)[:, None]
        if LAYER:
            result -= (tl.sum(above, 1) / N)[:, None]
        result = result * factor[:, None]
        if PASSED:
            result += tl.load(passed + place, mask, 0.0).to(tl.float32)
        if BIASED:
            of_added += tl.sum(result, 0)
        tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask)
    if BIASED:
        tl.store(added_parts + part * N + column, of_added, column < N)
    if LEARNED:
        tl.store(weight_parts + part * N + column, of_weight, column < N)
        if LAYER:
            tl.store(bias_parts + part * N + column, of_bias, column < N)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        # Rows [T, heads] of N values, T and heads with strides of their own: k is a part of the product with q and v.
        heads = x.shape[-2] if x.dim() > 2 else 1
        if x.stride(-1) != 1 or (x.dim() == 4 and x.shape[1] != 1) or x.dim() > 4:
            x = x.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ctx.strides = (heads, x.stride(0), x.stride(-2) if x.dim() > 2 else 0)
        mean, scale = _normed(out, x, weight, bias, eps, *ctx.strides)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.layer = bias is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias, _ = _norm_gradients(ctx, grad, None, False)
        return grad_x, grad_weight, grad_bias, None


def _normed(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    heads: int,
    stride: int,
    head_stride: int,
    *,
    added: Tensor | None = None,
    residual: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The norm of x, or of total = x + added + residual, into `out`; mean and factor of each row."""
    width = x.shape[-1]
    rows = x.numel() // width
    block = triton.next_power_of_2(width)
    tile = max(1, TILE // block)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    mean = torch.empty_like(scale) if bias is not None else scale
    if rows:
        # What a kernel does not look at is there all the same.
        _norm_forward[(triton.cdiv(rows, tile),)](
            x, weight, bias if bias is not None else weight, out, mean, scale,
            added if added is not None else weight, residual if residual is not None else x,
            total if total is not None else out, rows, eps, heads, stride, head_stride, width, block, tile,
            bias is not None, residual is not None, added is not None, num_warps=8 if block > 1024 else 4,
        )
    return mean, scale


def _norm_gradients(
    ctx: Any, grad: Tensor, passed: Tensor | None, biased: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the input (with `passed`, which came past the norm), of weight and bias, and the first one's sum
    over rows if it is that of a `biased` sum."""
    x, weight, mean, scale = ctx.saved_tensors
    width = x.shape[-1]
    rows, block = x.numel() // width, triton.next_power_of_2(width)
    grad = grad.contiguous()
    passed = None if passed is None else passed.contiguous()
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = max(1, TILE // block)
    parts = max(1, min(triton.cdiv(rows, tile), 4 * multiprocessors(x.device)))
    learned = weight.requires_grad
    count = (2 if ctx.layer else 1) * learned
    sums = torch.empty(count + biased, parts, width, device=x.device)
    first = sums if not len(sums) else sums[0]
    if not rows:
        sums.zero_()
    else:
        _norm_backward[(parts,)](
            grad, grad if passed is None else passed, x, weight, mean, scale, grad_x, first, sums[count - 1] if count
            else first, sums[-1] if len(sums) else first, rows, *ctx.strides, width, block, tile, ctx.layer, learned,
            passed is not None, biased, num_warps=8 if block > 1024 else 4,
        )
    totals = sums.sum(1).to(weight.dtype) if len(sums) else sums
    of_weight, of_bias = totals[0] if learned else None, totals[1] if learned and ctx.layer else None
    return grad_x, of_weight, of_bias, totals[-1] if biased else None


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of x [..., N] where there is a bias, else RMSNorm."""
    return _Norm.apply(x, weight, bias, eps)


class _ForkNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        out = torch.empty_like(x)
        ctx.strides = (1, x.shape[-1], 0)
        ctx.save_for_backward(x, weight, *_normed(out, x, weight, bias, eps, *ctx.strides))
        ctx.layer = bias is not None
        return x, out

    @staticmethod
    def backward(ctx: Any, passed: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias, _ = _norm_gradients(ctx, grad, passed, False)
        return grad_x, grad_weight, grad_bias, None


def fork_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x, and its norm as `norm` has it. Who goes on with this x and not with that which was given spares the backward
    pass the addition of their two gradients: the kernel that makes one adds the other."""
    return _ForkNorm.apply(x, weight, bias, eps)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor | None,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        total, out = torch.empty_like(residual), torch.empty_like(residual)
        ctx.strides = (1, x.shape[-1], 0)
        made = _normed(out, x, weight, bias, eps, *ctx.strides, added=added, residual=residual, total=total)
        ctx.save_for_backward(total, weight, *made)
        ctx.layer = bias is not None
        return total, out

    @staticmethod
    def backward(ctx: Any, passed: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, of_weight, of_bias, of_added = _norm_gradients(ctx, grad, passed, ctx.needs_input_grad[1])
        return grad_x, of_added, grad_x, of_weight, of_bias, None


def add_norm(
    x: Tensor, added: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x + added + residual, rounded once, and its norm as `norm` has it; x and residual [..., N], added [N] or None."""
    return _AddNorm.apply(x, added, residual, weight, bias, eps)


@triton.jit
def _swiglu_forward(x, out, total, N: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < total
    start = place // N * (2 * N) + place % N
    gate = tl.load(x + start, mask, 0.0).to(tl.float32)
    up = tl.load(x + start + N, mask, 0.0).to(tl.float32)
    tl.store(out + place, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask)


@triton.jit
def _swiglu_backward(grad, x, grad_x, total, N: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < total
    start = place // N * (2 * N) + place % N
    above = tl.load(grad + place, mask, 0.0).to(tl.float32)
    gate = tl.load(x + start, mask, 0.0).to(tl.float32)
    up = tl.load(x + start + N, mask, 0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    tl.store(grad_x + start, (above * up * share * (1 + gate * (1 - share))).to(grad_x.dtype.element_ty), mask)
    tl.store(grad_x + start + N, (above * gate * share).to(grad_x.dtype.element_ty), mask)


def swiglu_into(out: Tensor, x: Tensor) -> None:
    """out [..., F] = SiLU(x[..., :F]) * x[..., F:] of contiguous x [..., 2F], without a gradient."""
    if out.numel():
        _swiglu_forward[(triton.cdiv(out.numel(), 1024),)](x, out, out.numel(), out.shape[-1], 1024, num_warps=4)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        swiglu_into(out, x)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        if grad.numel():
            _swiglu_backward[(triton.cdiv(grad.numel(), 1024),)](
                grad, x, grad_x, grad.numel(), grad.shape[-1], 1024, num_warps=4
            )
        return grad_x


def swiglu(x: Tensor) -> Tensor:
    """SiLU(x[..., :F]) * x[..., F:] of x [..., 2F]."""
    return _SwiGLU.apply(x)


@triton.jit
def _normal(value):
    """Distribution function and density of the normal distribution. erf is the approximation 7.1.26 of Abramowitz and
    Stegun, within 1.5e-7, because it is made of the exponential that the density is made of: the library's erf takes
    longer than the memory."""
    density = tl.exp(-0.5 * value * value)
    t = 1 / (1 + 0.3275911 * 0.7071067811865476 * tl.abs(value))
    tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * density
    return tl.where(value < 0, 0.5 * tail, 1 - 0.5 * tail), 0.3989422804014327 * density


@triton.jit
def _bias_gelu_forward(x, bias, out, total, N: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < total
    value = tl.load(x + place, mask, 0.0).to(tl.float32) + tl.load(bias + place % N, mask, 0.0).to(tl.float32)
    share, _ = _normal(value)
    tl.store(out + place, (value * share).to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_backward(grad, x, bias, grad_x, parts, rows, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    added = tl.load(bias + column, inside, 0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * N + column[None, :]
        value = tl.load(x + place, mask, 0.0).to(tl.float32) + added
        above = tl.load(grad + place, mask, 0.0).to(tl.float32)
        share, density = _normal(value)
        result = above * (share + value * density)
        total += tl.sum(result, 0)
        tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask)
    tl.store(parts + tl.program_id(1) * N + column, total, inside)


def bias_gelu_into(out: Tensor, x: Tensor, bias: Tensor) -> None:
    """out = GELU(x + bias) of contiguous x [..., N] and bias [N], without a gradient."""
    if x.numel():
        _bias_gelu_forward[(triton.cdiv(x.numel(), 1024),)](x, bias, out, x.numel(), len(bias), 1024, num_warps=4)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        bias_gelu_into(out, x, bias)
        ctx.save_for_backward(x, bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        grad, grad_x, width = grad.contiguous(), torch.empty_like(x), len(bias)
        rows = x.numel() // width
        columns = triton.cdiv(width, 256)
        parts = max(1, min(triton.cdiv(rows, 8), 8 * multiprocessors(x.device) // columns))
        sums = torch.zeros(parts, width, device=x.device) if not rows else torch.empty(parts, width, device=x.device)
        if rows:
            _bias_gelu_backward[(columns, parts)](grad, x, bias, grad_x, sums, rows, width, 8, 256, num_warps=4)
        return grad_x, sums.sum(0).to(bias.dtype)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias), the exact one, of x [..., N] and bias [N]."""
    return _BiasGelu.apply(x, bias)


@triton.jit
def _bias_add(x, bias, residual, out, total, N: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < total
    value = tl.load(x + place, mask, 0.0).to(tl.float32) + tl.load(bias + place % N, mask, 0.0).to(tl.float32)
    value += tl.load(residual + place, mask, 0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask)


class _BiasAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        x, residual = x.contiguous(), residual.contiguous()
        out = torch.empty_like(x)
        if x.numel():
            _bias_add[(triton.cdiv(x.numel(), 1024),)](
                x, bias, residual, out, x.numel(), len(bias), 1024, num_warps=4
            )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return grad, grad.flatten(0, -2).sum(0), grad


def bias_add(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """x + bias + residual of x and residual [..., N] and bias [N], rounded once."""
    return _BiasAdd.apply(x, bias, residual)
