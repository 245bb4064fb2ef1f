from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.conftest import Place

TYPES = [torch.float32, torch.bfloat16]


def sequence(
    rows: int, count: int, width: int, dtype: torch.dtype, device: str, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embedded rows, features, slots, and a gradient for the result."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(rows, generator=generator)[:count].sort().values.to(device)
    embedded, features, grad = (
        torch.randn(n, width, generator=generator).to(device, dtype) for n in (rows, count, rows)
    )
    return embedded.requires_grad_(), features.requires_grad_(), slots, grad


def in_the_model(embedded: Tensor, features: Tensor, slots: Tensor) -> Tensor:
    return embedded[:, None].index_copy(0, slots, features[:, None])[:, 0]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "count", "width"), [(1, 1, 8), (50, 0, 8), (50, 50, 8), (999, 500, 136), (70, 9, 3)])
def test_it_is_the_models_forward_and_backward(
    place: Place, rows: int, count: int, width: int, dtype: torch.dtype
) -> None:
    embedded, features, slots, grad = sequence(rows, count, width, dtype, place.device)
    expected = in_the_model(embedded, features, slots)
    gradients = torch.autograd.grad(expected, (embedded, features), grad)
    out = place.ops.scatter_features(embedded, features, slots)
    assert torch.equal(out, expected)
    for found, wanted in zip(torch.autograd.grad(out, (embedded, features), grad), gradients, strict=True):
        assert torch.equal(found, wanted)


@given(parts=st.lists(st.integers(0, 40), min_size=1, max_size=4), share=st.floats(0, 1), seed=st.integers(0, 2**32))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_of_ranks_are_the_whole(place: Place, parts: list[int], share: float, seed: int) -> None:
    rows = sum(parts)
    embedded, features, slots, grad = sequence(rows, int(share * rows), 8, torch.float32, place.device, seed)
    whole = in_the_model(embedded, features, slots)
    grad_embedded, grad_features = torch.autograd.grad(whole, (embedded, features), grad)
    shares, firsts = torch.zeros_like(features), [sum(parts[:n]) for n in range(len(parts))]
    for first, count in zip(firsts, parts, strict=True):
        own = slice(first, first + count)
        part = embedded.detach()[own].requires_grad_()
        out = place.ops.scatter_features(part, features, slots, first)
        assert torch.equal(out, whole[own])
        back_embedded, back_features = torch.autograd.grad(out, (part, features), grad[own])
        assert torch.equal(back_embedded, grad_embedded[own])
        shares = shares + back_features
    assert torch.equal(shares, grad_features)


@pytest.mark.parametrize("slots", [[2, 1], [1, 1], [0, 3, 5, 4]])
def test_slots_that_do_not_ascend_are_refused(place: Place, slots: list[int]) -> None:
    if place.device == "cuda":
        pytest.skip("the trap ends the process's use of the GPU")
    embedded, features = torch.zeros(9, 8), torch.ones(len(slots), 8)
    with pytest.raises(RuntimeError, match="could not be run"):
        place.ops.scatter_features(embedded, features, torch.tensor(slots))


@pytest.mark.parametrize("dtype", TYPES)
def test_opcheck(place: Place, dtype: torch.dtype) -> None:
    embedded, features, slots, grad = sequence(20, 7, 8, dtype, place.device)
    torch.library.opcheck(place.ops.scatter_features.default, (embedded, features, slots))
    torch.library.opcheck(place.ops.scatter_features.default, (embedded[5:], features, slots, 5))
    torch.library.opcheck(place.ops.scatter_features_backward.default, (grad, slots, 0))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(place: Place, backend: str) -> None:
    embedded, features, slots, grad = sequence(20, 7, 8, torch.float32, place.device)

    def embed(embedded: Tensor, features: Tensor) -> Tensor:
        return 2 * place.ops.scatter_features(embedded + 1, features * 3, slots)

    compiled = torch.compile(embed, backend=backend, fullgraph=True)
    expected = torch.autograd.grad(embed(embedded, features), (embedded, features), grad)
    for found, wanted in zip(
        torch.autograd.grad(compiled(embedded, features), (embedded, features), grad), expected, strict=True
    ):
        assert torch.equal(found, wanted)


def test_what_cannot_work_is_refused(place: Place) -> None:
    embedded, features, slots, _ = sequence(20, 7, 8, torch.float32, place.device)
    for arguments, complaint in (
        ((embedded.double(), features.double(), slots), "float32 or bfloat16"),
        ((embedded, features.bfloat16(), slots), "features has the wrong dtype"),
        ((embedded, features[1:], slots), "a row for every slot"),
        ((embedded, features[:, 1:].contiguous(), slots), "as wide as"),
        ((embedded, features, slots.int()), "slots has the wrong dtype"),
        ((embedded[:, None], features, slots), r"embedded must have the shape \[rows, width\]"),
    ):
        with pytest.raises(RuntimeError, match=complaint):
            place.ops.scatter_features(*arguments)
