from __future__ import annotations

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch import Tensor

from onevision.model.vision import patch_positions
from onevision.ops.rotary import rotary
from tests.ops.conftest import Place

TYPES = [torch.float32, torch.bfloat16]


def vision_angles(grids: list[tuple[int, int]], head_dim: int) -> Tensor:
    """Angles of the patches of images as the vision tower makes them, and one more row for a class token."""
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2))
    positions = patch_positions(torch.tensor([(1, *grid) for grid in grids]))
    angles = (positions[..., None] * frequencies).flatten(1)
    return torch.cat([angles, torch.linspace(-2, 2, head_dim // 2)[None]])


def tower(x: Tensor, angles: Tensor) -> Tensor:
    """What Megatron's attention does with the tower's angles."""
    rotary = torch.cat([angles, angles], dim=-1)[:, None, None, :]
    return _apply_rotary_pos_emb_bshd(x[:, None], rotary)[:, 0]


def split_qkv(tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q and k as attention has them: views into the projection, with gradients."""
    generator = torch.Generator().manual_seed(tokens)
    mixed = torch.randn(tokens, heads, 3 * head_dim, generator=generator, dtype=torch.float32).to(device, dtype)
    return [part.detach().requires_grad_() for part in mixed.split(head_dim, dim=-1)[:2]]


CASES = [
    ([(2, 2)], 1, 16),  # one token, one head
    ([(4, 6), (2, 8)], 4, 32),  # the tiny tower
    ([(10, 4), (2, 2), (6, 6)], 16, 64),  # the tower
    ([(4, 4)], 3, 20),  # not a multiple of 16 bytes
    ([(2, 2)], 2, 256),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("grids", "heads", "head_dim"), CASES)
def test_it_is_the_towers_forward_and_backward(
    place: Place, grids: list[tuple[int, int]], heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    angles = vision_angles(grids, head_dim).to(place.device).requires_grad_()
    q, k = split_qkv(len(angles), heads, head_dim, dtype, place.device)
    out = place.ops.rotary(q, k, angles)
    exact = [x.detach().double().requires_grad_() for x in (q, k, angles)]
    expected = [tower(x, exact[2]) for x in exact[:2]]
    weights = [torch.randn_like(x) for x in expected]
    sum((x * w).sum() for x, w in zip(expected, weights, strict=True)).backward()
    sum((x * w.to(dtype)).sum() for x, w in zip(out, weights, strict=True)).backward()
    near = {torch.float32: 2e-6, torch.bfloat16: 2**-8}[dtype]
    for found, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=near, atol=2 * near)
    for found, wanted in zip((q.grad, k.grad), (exact[0].grad, exact[1].grad), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=2 * near, atol=4 * near)
    largest = exact[2].grad.abs().max()
    torch.testing.assert_close(angles.grad.double() / largest, exact[2].grad / largest, rtol=0, atol=4 * near)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_angles_of_some_tokens_alone(native: None, device: str) -> None:
    """The gradients are those of all tokens, and zero at the angles that are not learned."""
    angles = vision_angles([(4, 6), (2, 8)], 32).to(device)
    learned = torch.tensor([0, 7, len(angles) - 1], device=device)
    found = []
    for which in (None, learned):
        turned = angles.clone().requires_grad_()
        q, k = split_qkv(len(angles), 4, 32, torch.bfloat16, device)
        out_q, out_k = rotary(q, k, turned, which)
        (out_q.square().sum() + (out_k * 3).square().sum() + out_q[:, 0].sum()).backward()
        found.append((out_q, out_k, q.grad, k.grad, turned.grad))
    (*everything, of_all), (*others, of_some) = found
    assert all(torch.equal(one, two) for one, two in zip(everything, others, strict=True))
    assert torch.equal(of_some[learned], of_all[learned]) and of_all[learned].abs().sum() > 0
    of_some[learned] = 0
    assert torch.count_nonzero(of_some) == 0


def test_bfloat16_is_nearer_to_the_truth_than_the_towers_own(place: Place) -> None:
    angles = vision_angles([(40, 40)], 64).to(place.device)
    q, k = split_qkv(len(angles), 2, 64, torch.bfloat16, place.device)
    exact = tower(q.double(), angles.double())
    error = (place.ops.rotary(q, k, angles)[0].double() - exact).abs().mean()
    assert 0 < error < (tower(q, angles).double() - exact).abs().mean()


def test_without_tokens(place: Place) -> None:
    q = torch.zeros(0, 4, 32, device=place.device, requires_grad=True)
    angles = torch.zeros(0, 16, device=place.device, requires_grad=True)
    out, _ = place.ops.rotary(q, q, angles)
    out.sum().backward()
    assert out.shape == q.grad.shape == (0, 4, 32) and angles.grad.shape == (0, 16)


def test_heads_of_k_may_be_fewer(place: Place) -> None:
    angles = vision_angles([(4, 4)], 32).to(place.device)
    q, _ = split_qkv(17, 8, 32, torch.float32, place.device)
    _, k = split_qkv(17, 2, 32, torch.float32, place.device)
    for found, x in zip(place.ops.rotary(q, k, angles), (q, k), strict=True):
        torch.testing.assert_close(found, tower(x, angles), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_opcheck(place: Place, dtype: torch.dtype) -> None:
    angles = vision_angles([(4, 4)], 32).to(place.device).requires_grad_()
    q, k = split_qkv(17, 2, 32, dtype, place.device)
    torch.library.opcheck(place.ops.rotary.default, (q, k, angles), rtol=1e-2, atol=1e-2)
    torch.library.opcheck(place.ops.rotary.default, (q, k, angles.detach(), True))
    torch.library.opcheck(place.ops.rotary_angles.default, (q.detach(), k.detach(), q.detach(), k.detach()))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(place: Place, backend: str) -> None:
    angles = vision_angles([(4, 4)], 32).to(place.device).requires_grad_()
    q, k = split_qkv(17, 2, 32, torch.float32, place.device)

    def attend(q: Tensor, k: Tensor, angles: Tensor) -> Tensor:
        turned_q, turned_k = place.ops.rotary(q * 2, k, angles)
        return (turned_q * turned_k).sum()

    plain = torch.autograd.grad(attend(q, k, angles), (q, k, angles))
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    for found, wanted in zip(torch.autograd.grad(compiled(q, k, angles), (q, k, angles)), plain, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda q, k, angles: (q.half(), k.half(), angles), "float32 or bfloat16"),
        (lambda q, k, angles: (q, k.bfloat16(), angles), "k has another dtype"),
        (lambda q, k, angles: (q, k[1:], angles), "k has another shape"),
        (lambda q, k, angles: (q, k, angles[1:]), "angles must have the shape"),
        (lambda q, k, angles: (q, k, angles.double()), "angles has the wrong dtype"),
        (lambda q, k, angles: (q[..., ::2], k[..., ::2], angles[:, :8].contiguous()), "dense last dimension"),
        (lambda q, k, angles: (q[..., 1:], k[..., 1:], angles), "head_dim must be even"),
    ],
)
def test_what_cannot_work_is_refused(place: Place, change: object, complaint: str) -> None:
    angles = vision_angles([(4, 4)], 32).to(place.device)
    q, k = split_qkv(17, 2, 32, torch.float32, place.device)
    with pytest.raises(RuntimeError, match=complaint):
        place.ops.rotary(*change(q.detach(), k.detach(), angles))
