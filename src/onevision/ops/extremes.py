"""Ragged extremes on which a kernel must do what its twin does: nothing, one of all, very many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from onevision.data.image import SCALE, SHIFT

DTYPES = (torch.float32, torch.bfloat16)
Case = Callable[[Any], Sequence[Tensor]]  # of a namespace of torch.ops: the op's results


def extremes() -> Iterator[tuple[str, str, Case]]:
    """Op, what is extreme, and the case."""
    for tokens, head_dim, what in (
        (0, 32, "no token"),
        (1, 32, "1 patch"),
        (5, 64, "1 image of 4 patches"),
        (9, 256, "heads of 256"),
        (9, 20, "heads of 20, which are not moved 16 bytes at once"),
        (10_000, 32, "10,000 tokens"),
    ):
        for dtype in DTYPES:
            yield "rotary", f"{what}, {_name(dtype)}", _rotary(tokens, head_dim, dtype)
    for name, rows, slots, width in (
        ("no text", 4, 4, 96),
        ("no image", 4, 0, 96),
        ("1 token of a rank whose image is elsewhere", 1, 1, 96),
        ("10,000 tokens, 9,000 of images", 10_000, 9_000, 8),
        ("rows of 10 bytes", 100, 9, 5),
    ):
        for dtype in DTYPES:
            yield "scatter_features", f"{name}, {_name(dtype)}", _scatter(rows, slots, width, dtype)
    for name, packs in (
        ("1 sample of 1 token", [[1]]),
        ("full and nearly full packs", [[64], [63], [1, 63], [62]]),
        ("samples without a token", [[0, 5, 0], [0], [64, 0]]),
        ("10,000 samples", [[int(n) for n in torch.arange(100) % 13] for _ in range(100)]),
    ):
        for images in (0, 1, 2):
            yield "assemble", f"{name}, {('no image', 'some images', 'empty text')[images]}", _assemble(packs, images)
    for name, sizes in (
        ("no image", []),
        ("1 image of 1 token", [(28, 28, 2, 2)]),
        ("1 image of 1 pixel", [(1, 1, 2, 2)]),
        ("odd sides, a little shrunk and grown", [(61, 45, 4, 4), (64, 66, 4, 4), (47, 71, 4, 4)]),
        ("shrunk 15 times", [(400, 450, 2, 2)]),
        ("wide and tall images", [(9, 900, 2, 4), (900, 9, 4, 2), (300, 40, 2, 2), (64, 48, 4, 4)]),
        ("300 images", [(8 + n % 31, 8 + n % 37, 2, 2) for n in range(300)]),
    ):
        for dtype in DTYPES:
            yield "resize_patches", f"{name}, {_name(dtype)}", _patches(sizes, dtype)


def _patches(sizes: list[tuple[int, int, int, int]], dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 4)
    count = int(shapes[:, :2].prod(1).sum())
    pixels = torch.randint(0, 256, (3 * count,), generator=generator, dtype=torch.uint8)
    scale, shift = torch.from_numpy(SCALE), torch.from_numpy(SHIFT)
    patches = int(shapes[:, 2:].prod(1).sum())
    return lambda ops: [ops.resize_patches(pixels, shapes, scale, shift, patches, dtype)]


def _assemble(packs: list[list[int]], images: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([length for pack in packs for length in pack])
    total = int(lengths.sum())
    ids = torch.randint(2, 50, (total,), generator=generator)
    pads = torch.rand(total, generator=generator) < images / 2
    ids[pads] = 1
    target = torch.rand(total, generator=generator) < 0.5
    samples = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    of_packs = torch.tensor([0, *(len(pack) for pack in packs)]).cumsum(0)
    longest = max(64, *(sum(pack) for pack in packs))

    def results(ops: Any) -> Sequence[Tensor]:
        return ops.assemble(ids, target, samples, of_packs, longest, 0, 1, int(pads.sum()))

    return results


def _scatter(rows: int, count: int, width: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    total = max(2 * rows, count)  # of the sequence, of which these rows are the second half
    slots = torch.randperm(total, generator=generator)[:count].sort().values
    embedded = torch.randn(rows, width, generator=generator).to(dtype)
    features = torch.randn(count, width, generator=generator).to(dtype)

    def results(ops: Any) -> Sequence[Tensor]:
        out = ops.scatter_features(embedded, features, slots, total - rows)
        return [out, *ops.scatter_features_backward(out, slots, total - rows)]

    return results


def _rotary(tokens: int, head_dim: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, _ = torch.randn(tokens, 2, 3 * head_dim, generator=generator).to(dtype).split(head_dim, dim=-1)
    angles = 50 * torch.randn(tokens, head_dim // 2, generator=generator)

    def results(ops: Any) -> Sequence[Tensor]:
        turned = ops.rotary(q, k, angles, False)
        return [*turned, *ops.rotary(*turned, angles, True), ops.rotary_angles(q, k, *turned)]

    return results


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
