"""The head and its cross-entropy in pieces, against the whole logits; alone, and with the vocabulary over two ranks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from onevision.model.loss import linear_cross_entropy
from tests.forks import forked

TOKENS, HIDDEN, VOCABULARY = 37, 24, 96


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    labels[:2] = torch.tensor([0, VOCABULARY - 1])
    return hidden, weight, labels


def expected(factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and the gradients of `factor` times their sum, in float64."""
    hidden, weight, labels = inputs()
    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    losses = F.cross_entropy(exact[0] @ exact[1].T, labels, reduction="none")
    (losses.sum() * factor).backward()
    assert exact[0].grad is not None and exact[1].grad is not None
    return losses.detach(), exact[0].grad, exact[1].grad


def near(found: Tensor | None, wanted: Tensor, tolerance: float = 2e-6) -> bool:
    assert found is not None
    return bool((found.double() - wanted).norm() <= tolerance * wanted.norm())


@pytest.mark.parametrize("rows", [1, 8, TOKENS, 1000])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_it_is_the_cross_entropy_of_the_whole_logits(rows: int, factor: float) -> None:
    hidden, weight, labels = inputs()
    total, losses = linear_cross_entropy(hidden, weight, labels, rows=rows)
    (total * factor).backward()
    wanted, of_hidden, of_weight = expected(factor)
    assert near(losses, wanted) and not losses.requires_grad
    assert torch.equal(total.detach(), losses.sum())
    assert near(hidden.grad, of_hidden) and near(weight.grad, of_weight)


@pytest.mark.parametrize("rows", [8, TOKENS])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_the_gradient_of_the_weight_is_added_to_its_sum(rows: int, factor: float) -> None:
    """In several pieces, and in one, whose product is made in the backward pass."""
    hidden, weight, labels = inputs()
    weight.main_grad = torch.ones(VOCABULARY, HIDDEN)
    total, _ = linear_cross_entropy(hidden, weight, labels, rows=rows, into_main_grad=True)
    assert torch.equal(weight.main_grad, torch.ones(VOCABULARY, HIDDEN))  # a loss that is not learned from adds nothing
    (total * factor).backward()
    _, of_hidden, of_weight = expected(factor)
    assert near(hidden.grad, of_hidden) and near(weight.main_grad - 1, of_weight, 1e-5)
    assert weight.grad_added_to_main_grad


def test_bfloat16_keeps_its_sums_in_float32() -> None:
    hidden, weight, labels = inputs(torch.bfloat16)
    total, losses = linear_cross_entropy(hidden, weight, labels, rows=8)
    total.backward()
    wanted, of_hidden, of_weight = expected()
    assert losses.dtype == torch.float32 and near(losses, wanted, 0.01)
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert near(hidden.grad, of_hidden, 0.02) and near(weight.grad, of_weight, 0.02)


def test_what_is_frozen_has_no_gradient_and_nothing_is_made_without_training() -> None:
    hidden, weight, labels = inputs()
    total, _ = linear_cross_entropy(hidden, weight.detach(), labels)
    total.backward()
    assert near(hidden.grad, expected()[1])
    with torch.no_grad():
        total, losses = linear_cross_entropy(hidden, weight, labels)
    assert not total.requires_grad and near(losses, expected()[0])


def test_no_target_at_all() -> None:
    hidden, weight, labels = inputs()
    total, losses = linear_cross_entropy(hidden[:0], weight, labels[:0])
    total.backward()
    assert total.item() == 0 and losses.shape == (0,)
    assert weight.grad is not None and torch.count_nonzero(weight.grad) == 0


def _rank(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    hidden, weight, labels = inputs()
    half = VOCABULARY // 2
    own = weight.detach()[rank * half : (rank + 1) * half].clone().requires_grad_()
    total, losses = linear_cross_entropy(hidden, own, labels, rows=8, group=dist.group.WORLD)
    total.backward()
    wanted, of_hidden, of_weight = expected()
    assert near(losses, wanted) and near(hidden.grad, of_hidden)
    assert near(own.grad, of_weight[rank * half : (rank + 1) * half])
    dist.destroy_process_group()


def test_two_ranks_with_half_of_the_vocabulary_each(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(forked(_rank, rank, str(tmp_path / "meeting"))) for rank in range(2)]
        for child in children:
            assert child.join() == 0, child.error
