"""Assembly of packs, image features into the sequence, rotary embedding; and the last two as PyTorch does them.

Packs have the 8,192 tokens of stage 1.5. An op's inputs are several sets that take turns, so that none stays in the
cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.ops.timing import Row, microseconds, traffic

LENGTH = 8192
IMAGE_SHARE = 0.6  # of the tokens of a pack
PATCHES, HEADS, SIZE = 32_768, 16, 64  # of the vision tower
GOAL = 0.70


def assemble_rows(copy: float) -> Iterator[Row]:
    """512 packs a call, because one moves no more than 0.3 MB; then the time of a call for a single pack."""
    calls, moved = zip(*(_assembly(512, seed) for seed in range(3)), strict=True)
    formula = "9 * tokens + 28 * places + 8 * (samples + 1) + 8 * (packs + 1) + 4 * (samples + 1) + 8 * image tokens"
    yield traffic("ops/assemble, 512 packs", microseconds(calls), sum(moved) // 3, formula, copy, GOAL)
    single, moved_by_one = zip(*(_assembly(1, seed) for seed in range(3)), strict=True)
    yield traffic("ops/assemble, 1 pack", microseconds(single), moved_by_one[0], formula, copy, None)


def _assembly(packs: int, seed: int) -> tuple[Callable[[], object], int]:
    """A call of the op, and the bytes that it must move."""
    rng = np.random.default_rng(seed)
    lengths, counts = [], []
    for _ in range(packs):
        cuts = np.sort(rng.choice(np.arange(1, LENGTH - 100), 19, replace=False))
        own = np.diff([0, *cuts, LENGTH - int(rng.integers(0, 100))])
        lengths += own.tolist()
        counts.append(len(own))
    tokens = sum(lengths)
    ids = rng.integers(10, 150_000, tokens)
    image_pad = 5
    starts = rng.integers(0, tokens, tokens // 400)  # runs of image tokens, as images make them
    for start in starts:
        ids[start : start + 360] = image_pad
    target = torch.from_numpy(rng.random(tokens) < 0.3).cuda()
    offsets = [torch.tensor([0, *x]).cumsum(0).cuda() for x in (lengths, counts)]
    image_tokens = int((ids == image_pad).sum())
    arguments = torch.from_numpy(ids).cuda(), target, *offsets, LENGTH, 0, image_pad, image_tokens
    samples, places = len(lengths), packs * LENGTH
    moved = 9 * tokens + 28 * places + 12 * (samples + 1) + 8 * (packs + 1) + 8 * image_tokens
    return partial(torch.ops.onevision.assemble, *arguments), moved


def scatter_rows(copy: float) -> Iterator[Row]:
    """Four packs a call, with hidden sizes of 2048 and 4096, forward and backward."""
    rows = 4 * LENGTH
    for width in (2048, 4096):
        sets = [_features(rows, width, seed) for seed in range(3)]
        count, row = len(sets[0][2]), 2 * width
        forward = 2 * rows * row + 8 * count
        backward = 2 * rows * row + count * row + 8 * count
        name = f"ops/scatter {{}}, 4 packs x {width}"
        times = [
            microseconds([partial(torch.ops.onevision.scatter_features, e, f, s) for e, f, s in sets]),
            microseconds([partial(torch.ops.onevision.scatter_features_backward, e, s, 0) for e, _, s in sets]),
        ]
        formula = "2 * rows * row + 8 * slots"
        yield traffic(name.format("forward"), times[0], forward, formula, copy, GOAL)
        yield traffic(name.format("backward"), times[1], backward, f"{formula} + slots * row", copy, GOAL)


def _features(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embedded rows, features, slots in runs of 360 as images make them."""
    generator = torch.Generator().manual_seed(seed)
    runs = torch.rand(rows // 360 + 1, generator=generator) < IMAGE_SHARE
    runs[0] = True
    slots = runs.repeat_interleave(360)[:rows].nonzero().squeeze(1).cuda()
    # Every set has as many, so that their bytes are equal.
    slots = slots[: int(0.4 * rows)]
    values = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    return values(rows, width), values(len(slots), width), slots


def index_copy(embedded: Tensor, features: Tensor, slots: Tensor) -> Tensor:
    """The scatter of plain PyTorch."""
    return embedded.index_copy(0, slots, features)


def index_copy_backward(grad: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Its gradients."""
    return grad.index_fill(0, slots, 0), grad.index_select(0, slots)


def rotary_rows(copy: float) -> Iterator[Row]:
    """32,768 patches of 16 heads of 64: the tower's q and k, which are views into one projection, in bfloat16."""
    sets = [_heads(PATCHES, HEADS, SIZE, seed) for seed in range(3)]
    both = 2 * PATCHES * HEADS * SIZE * 2
    angles = 4 * PATCHES * SIZE // 2
    ops = torch.ops.onevision
    forward = microseconds([partial(ops.rotary, q, k, a, False) for q, k, a, _, _ in sets])
    backward = microseconds([partial(ops.rotary, gq, gk, a, True) for _, _, a, gq, gk in sets])
    of_angles = microseconds([partial(ops.rotary_angles, q, k, gq, gk) for q, k, _, gq, gk in sets])
    turned = "2 * (q + k) + angles"
    yield traffic("ops/rotary forward, 32,768 patches", forward, 2 * both + angles, turned, copy, GOAL)
    yield traffic("ops/rotary backward, 32,768 patches", backward, 2 * both + angles, turned, copy, GOAL)
    formula = "2 * (q + k) + gradient of the angles"
    yield traffic("ops/rotary_angles, 32,768 patches", of_angles, 2 * both + angles, formula, copy, GOAL)


def peer_rows(copy: float) -> Iterator[Row]:
    """Scatter of rows of 4096 and rotary embedding beside PyTorch, which compiles for some of it: a minute."""
    ops = torch.ops.onevision
    sets = [_features(4 * LENGTH, 4096, seed) for seed in range(3)]
    scattered = microseconds([partial(ops.scatter_features, *one) for one in sets])
    gathered = microseconds([partial(ops.scatter_features_backward, e, s, 0) for e, _, s in sets])
    turning = [_heads(PATCHES, HEADS, SIZE, seed)[:3] for seed in range(3)]
    turned = microseconds([partial(ops.rotary, *one, False) for one in turning])
    name = "ops/scatter {}, 4 packs x 4096"
    for how, compiled in (("eager", lambda op: op), ("torch.compile", torch.compile)):
        yield _beside(name.format("forward"), scattered, how, [partial(compiled(index_copy), *one) for one in sets])
        backward = [partial(compiled(index_copy_backward), e, s) for e, _, s in sets]
        yield _beside(name.format("backward"), gathered, how, backward)
        rotated = [partial(compiled(rotate), *one) for one in turning]
        yield _beside(f"ops/rotary forward, {PATCHES:,} patches", turned, how, rotated)


def _heads(patches: int, heads: int, size: int, seed: int) -> tuple[Tensor, ...]:
    """q and k as views, angles, dense gradients of both."""
    torch.manual_seed(seed)
    values = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    q, k, _ = values(patches, heads, 3 * size).split(size, dim=-1)
    angles = 10 * torch.randn(patches, size // 2, device="cuda")
    return q, k, angles, values(patches, heads, size), values(patches, heads, size)


def rotate(q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding as Megatron writes it, in the type of q and k."""
    whole = torch.cat([angles, angles], dim=-1)[:, None]
    cosine, sine = whole.cos().to(q.dtype), whole.sin().to(q.dtype)

    def turn(x: Tensor) -> Tensor:
        low, high = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-high, low], dim=-1) * sine

    return turn(q), turn(k)


def _beside(path: str, ours: float, how: str, calls: Sequence[Callable[[], object]]) -> Row:
    """The time of ours beside that of the same in PyTorch."""
    start = time.perf_counter()
    calls[0]()  # compiles
    if (took := time.perf_counter() - start) > 5:
        print(f"{path}: {how} took {took:.0f} s to compile", flush=True)
    theirs = microseconds(calls)
    reference = f"PyTorch, {how}"
    return Row(path, "time", ours, "us", reference, theirs, "none, for comparison", True, microseconds=ours)
