"""The language model's head and its cross-entropy, a few rows at a time: the logits of a pack, 8,192 rows of 152K
values, are never held whole.

What is done of a row of logits l with the label y, in float32:

    loss = log(sum(exp(l))) - l[y]            d loss / d l = softmax(l) - onehot(y)

The gradients of the hidden state and of the head's weight are products with the second, so they are made at once, in
the forward pass, while the logits are there: the logits are computed once, not again for the backward pass. That needs
a gradient of the loss that is the same for all rows, as it is of their sum. Where all rows are one piece and the
weight's gradient is added to its `main_grad`, the gradient of the logits is kept instead (BF16, as many values as the
piece has logits), and the product is made in the backward pass, straight into `main_grad`: the FP32 gradient, twice as
large, is never made, zeroed or added.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from onevision.model.presets import HEAD_ROWS


def statistics(logits: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """log(sum(exp)) of each row, and the logit of its label, 0 where that is not one of the columns from `first` on."""
    values = logits.float()
    column = labels - first
    here = (column >= 0) & (column < logits.shape[1])
    at_label = values.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    return torch.logsumexp(values, dim=1), torch.where(here, at_label, 0.0)


def gradient(logits: Tensor, labels: Tensor, first: int, log_sum: Tensor) -> Tensor:
    """softmax(logits) - onehot(labels), like the logits."""
    columns = torch.arange(first, first + logits.shape[1], device=logits.device)
    label = columns[None, :] == labels[:, None]
    return (torch.exp(logits.float() - log_sum[:, None]) - label.float()).to(logits.dtype)


@cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`statistics` and `gradient` for a GPU. Compiled they read the logits three times and write the gradient once; a
    value is at no time held in float32. Not made at the import: it would load the compiler, which a CPU does without.
    """
    return torch.compile(statistics, dynamic=True), torch.compile(gradient, dynamic=True)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        rows: int,
        group: dist.ProcessGroup | None,
        learning: bool,
        into_main_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        on_gpu = hidden.is_cuda
        of_rows, of_logits = _compiled() if on_gpu else (statistics, gradient)
        shared = group if group is not None and group.size() > 1 else None
        first = shared.rank() * weight.shape[0] if shared is not None else 0
        wants_hidden, wants_weight = (learning and needed for needed in ctx.needs_input_grad[:2])
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        later = wants_weight and into_main_grad and 0 < len(hidden) <= rows
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight and not later else None
        kept = None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            inputs, wanted = hidden[part], labels[part]
            logits = inputs @ weight.t()
            log_sum, at_label = of_rows(logits, wanted, first)
            if shared is not None:
                sums = [torch.empty_like(log_sum) for _ in range(shared.size())]
                dist.all_gather(sums, log_sum, group=shared)
                log_sum = torch.logsumexp(torch.stack(sums), dim=0)
                dist.all_reduce(at_label, group=shared)
            losses[part] = log_sum - at_label
            if not (wants_hidden or wants_weight):
                continue
            logits = of_logits(logits, wanted, first, log_sum)
            if grad_hidden is not None:
                torch.matmul(logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                add_product(grad_weight, logits, inputs)
            elif later:
                kept = logits
        if shared is not None and grad_hidden is not None:
            dist.all_reduce(grad_hidden, group=shared)
        ctx.save_for_backward(grad_hidden, grad_weight, kept, hidden if later else None)
        ctx.weight = weight
        ctx.into_main_grad = into_main_grad
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, kept, hidden = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = torch.mul(grad_hidden, grad, out=torch.empty_like(grad_hidden))
        weight = ctx.weight
        if kept is not None or (grad_weight is not None and ctx.into_main_grad):
            if kept is not None:
                # The gradient of a sum of losses is one, or what FP16 losses are scaled by: hidden has room for it.
                add_product(weight.main_grad, kept, hidden * grad.to(hidden.dtype))
            else:
                weight.main_grad.addcmul_(grad_weight, grad)
            weight.grad_added_to_main_grad = True  # what is returned stands for a gradient, and is not looked at
            grad_weight = torch.empty_like(weight)
        elif grad_weight is not None:
            grad_weight = torch.mul(grad_weight, grad, out=torch.empty_like(weight))
        return grad_hidden, grad_weight, None, None, None, None, None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    rows: int = HEAD_ROWS,
    group: dist.ProcessGroup | None = None,
    into_main_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of labels under the logits hidden @ weight.T.

    Args:
        hidden: [N, H].
        weight: [V, H]; with a tensor-parallel `group` this rank's V / size rows of it.
        labels: int64 [N], 0 to V - 1.
        rows: of logits that are held at once.
        into_main_grad: add the weight's gradient to its `main_grad` in float32, as Megatron's linear layers do with
            gradient_accumulation_fusion.

    Returns:
        The sum of the losses, float32, and the losses, float32 [N], which have no gradient.
    """
    into_main_grad = into_main_grad and hasattr(weight, "main_grad")
    return _LinearCrossEntropy.apply(hidden, weight, labels, rows, group, torch.is_grad_enabled(), into_main_grad)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right, in place: float32 [m, n] of [k, m] and [k, n], which may be BF16; summed in float32."""
    if total.is_cuda and left.dtype != total.dtype:
        torch.addmm(total, left.t(), right, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, left.t().to(total.dtype), right.to(total.dtype), out=total)
