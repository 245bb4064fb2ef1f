"""The attentions of a GPU, each on its own, against the formula in float64, a segment at a time.

Every segment is compared apart, so that a failure names the kernel, the segment, its lengths and what is wrong of it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onevision.model import flash_attn_4
from onevision.model.attention import Attend, SegmentParams, attention_for, flash, segment_params

pytestmark = pytest.mark.gpu
ATTENTIONS: dict[str, Attend] = {"torch": flash, flash_attn_4.NAME: flash_attn_4.flash_attn_4}
NEAR = 1e-2  # ||found - expected|| / ||expected|| over all segments, in BF16
NEAR_ALONE = 3e-2  # of one segment: of a few values the roundings do not even out
LANGUAGE, VISION = (16, 8, 128), (16, 16, 64)  # heads, groups, channels
GPU = torch.device("cuda", 0)
# (queries, keys) of each segment
ONE = [(1, 1)]
PACK = [(753, 753), (1, 1), (3, 3), (2048, 2048), (129, 129), (64, 64)]
IMAGES = [(1601, 1601), (5, 5), (2, 2), (197, 197), (1, 1), (2305, 2305)]
MANY = [(1 + number % 7, 1 + number % 7) for number in range(300)]  # from 257 on flash-attn-4 searches in another way
PIECES = [(1, 700), (130, 131), (512, 2048), (3, 3), (200, 1000)]  # of ranks that share tokens: the last sees the last


@pytest.fixture(params=list(ATTENTIONS))
def attend(request: pytest.FixtureRequest) -> Attend:
    """One attention, where this machine has it."""
    problem = flash_attn_4.problem(GPU)
    if request.param == flash_attn_4.NAME and problem:
        pytest.skip(problem)
    return ATTENTIONS[request.param]


def params_of(lengths: list[tuple[int, int]]) -> SegmentParams:
    queries, keys = (torch.tensor(column) for column in zip(*lengths, strict=True))
    bounds = [F.pad(one.cumsum(0), (1, 0)).to(GPU, torch.int32) for one in (queries, keys)]
    return SegmentParams(
        qkv_format="thd",
        cu_seqlens_q=bounds[0],
        cu_seqlens_kv=bounds[1],
        max_seqlen_q=int(queries.max()),
        max_seqlen_kv=int(keys.max()),
        lengths=queries,
        key_lengths=keys,
    )


def drawn(rows: int, heads: int, channels: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, heads, channels, generator=random).to(GPU, torch.bfloat16).requires_grad_()


def formula(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attention of one segment [q, h*d], by its formula; q [q, h, d], k and v [k, g, d]."""
    (queries, heads, channels), (keys, groups, _) = query.shape, key.shape
    key, value = (x.repeat_interleave(heads // groups, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * channels**-0.5
    if causal:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)


def compared(attend: Attend, lengths: list[tuple[int, int]], sizes: tuple[int, int, int], causal: bool) -> None:
    """Output and gradients of every segment against the formula."""
    heads, groups, channels = sizes
    queries, keys = (sum(column) for column in zip(*lengths, strict=True))
    query = drawn(queries, heads, channels, 0)
    # Key and value are parts of one product, as in the model: their rows do not lie one after the other.
    both = drawn(keys, groups, 2 * channels, 1)
    key, value = both.split(channels, dim=2)
    output = attend(query, key, value, params_of(lengths), causal, channels**-0.5)
    above = drawn(queries, heads, channels, 2).detach().flatten(1)
    output.backward(above)
    assert query.grad is not None and both.grad is not None
    row = key_row = 0
    wrong = []
    squares: dict[str, Tensor] = {}  # of the differences and of what is expected
    for number, (length, seen) in enumerate(lengths):
        at, key_at = slice(row, row + length), slice(key_row, key_row + seen)
        row, key_row = at.stop, key_at.stop
        exact = [query[at].detach().double().requires_grad_(), both[key_at].detach().double().requires_grad_()]
        expected = formula(exact[0], *exact[1].split(channels, dim=2), causal)
        expected.backward(above[at].double())
        assert exact[0].grad is not None and exact[1].grad is not None
        pairs = {
            "output": (output[at], expected),
            "dq": (query.grad[at], exact[0].grad),
            "dk": (both.grad[key_at, :, :channels], exact[1].grad[..., :channels]),
            "dv": (both.grad[key_at, :, channels:], exact[1].grad[..., channels:]),
        }
        for what, (found, reference) in pairs.items():
            off, size = ((found - reference).detach().norm(), reference.detach().norm())
            squares[what] = squares.get(what, 0.0) + torch.stack([off, size]).square()
            # A token that sees itself alone has no gradient at q and k: what is zero is held against the one at v.
            share = float(off / max(size, 0.1 * exact[1].grad.norm()))
            if not share < NEAR_ALONE:  # also where it is no number
                wrong.append(f"segment {number} ({length} queries, {seen} keys): {what} off by {share:.1e}")
    assert not wrong, "; ".join(wrong[:8])
    for what, (off, size) in squares.items():
        assert off <= NEAR**2 * size or len(lengths) == 1, f"{what} off by {float((off / size).sqrt()):.1e}"


@pytest.mark.parametrize("lengths", [ONE, [(64, 64)] * 20, PACK, MANY], ids=["one", "equal", "pack", "many"])
def test_language(attend: Attend, lengths: list[tuple[int, int]]) -> None:
    compared(attend, lengths, LANGUAGE, causal=True)


@pytest.mark.parametrize("lengths", [ONE, [(1601, 1601)] * 3, IMAGES, MANY], ids=["one", "equal", "images", "many"])
def test_vision(attend: Attend, lengths: list[tuple[int, int]]) -> None:
    compared(attend, lengths, VISION, causal=False)


def test_fewer_queries_than_keys(attend: Attend) -> None:
    compared(attend, PIECES, LANGUAGE, causal=True)


def test_three_heads_a_group(attend: Attend) -> None:
    compared(attend, PACK, (6, 2, 128), causal=True)


def test_generation_has_one_query_a_segment() -> None:
    """PyTorch's alone, which all generation has; it swaps heads and rows there."""
    query, key, value = (drawn(rows, heads, 128, rows) for rows, heads in ((3, 16), (734, 8), (734, 8)))
    lengths = [(1, 700), (1, 1), (1, 33)]
    with torch.no_grad():
        output = flash(query, key, value, params_of(lengths), True, 128**-0.5)
    row = 0
    for number, (_, keys) in enumerate(lengths):
        at = slice(row, row + keys)
        row = at.stop
        expected = formula(query[number : number + 1].double(), key[at].double(), value[at].double(), causal=True)
        assert (output[number].double() - expected).norm() < NEAR * expected.norm(), number


def test_the_first_pass_of_a_layer_that_is_computed_again(attend: Attend) -> None:
    """Without gradients it gives the bits of the second one."""
    query, key, value = (drawn(1200, heads, 128, seed) for seed, heads in enumerate((16, 8, 8)))
    params = params_of([(1000, 1000), (200, 200)])
    with torch.no_grad():
        first = attend(query, key, value, params, True, 128**-0.5)
    assert torch.equal(first, attend(query, key, value, params, True, 128**-0.5))


@pytest.mark.parametrize(("sizes", "causal"), [(LANGUAGE, True), (VISION, False)], ids=["language", "vision"])
def test_the_same_bits_twice(attend: Attend, sizes: tuple[int, int, int], causal: bool) -> None:
    """What `train.deterministic` asks of the backward pass."""
    heads, groups, channels = sizes
    rows = sum(length for length, _ in PACK)
    above = drawn(rows, heads, channels, 9).detach().flatten(1)
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            inputs = [drawn(rows, count, channels, seed) for seed, count in enumerate((heads, groups, groups))]
            attend(*inputs, params_of(PACK), causal, channels**-0.5).backward(above)
            found.append([one.grad for one in inputs])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, two) for later in found[1:] for one, two in zip(found[0], later, strict=True))


def test_what_a_model_in_bf16_gets() -> None:
    """Flash attention, and the segments that the other tests have."""
    assert attention_for(drawn(3, 2, 64, 0)) is flash
    bounds = torch.tensor([0, *(length for length, _ in PACK)]).cumsum(0).to(torch.int32)
    ours, theirs = segment_params(bounds, GPU), params_of(PACK)
    assert torch.equal(ours.cu_seqlens_q, theirs.cu_seqlens_q)
    assert torch.equal(ours.cu_seqlens_kv, theirs.cu_seqlens_kv)
    assert (ours.max_seqlen_q, ours.max_seqlen_kv) == (theirs.max_seqlen_q, theirs.max_seqlen_kv)
