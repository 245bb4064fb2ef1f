"""Decoded images into patches: three kinds of sizes, and the CPU path of all cores beside it.

Sides are those of typical JPEG files, the grid is the recipe's. Pixels are random: the time does not depend on them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.ops.timing import Row, microseconds, traffic
from onevision.data.decode.kernels import resize_patches as resize_on_cpu
from onevision.data.image import MEAN, PATCH, PATCH_VALUES, SCALE, SHIFT, STD, patch_grid
from onevision.ops.patches import resize_patches
from onevision.recipe import DataRecipe

IMAGES = 160  # of a call
SETS = 3  # of images, which take turns
ON_CPU = 64  # images of a round of the CPU path
GOAL, CPU_GOAL = 0.60, 5.0
FORMULA = "3 * pixels of the images + 588 * 2 * patches"


class Images(NamedTuple):
    """Images on the GPU: uint8 [B], int64 [I, 4] on the CPU."""

    pixels: Tensor
    sizes: Tensor

    @property
    def bytes(self) -> int:
        return len(self.pixels) + 2 * PATCH_VALUES * int(self.sizes[:, 2:].prod(1).sum())


def draw(seed: int, max_pixels: int, multiples: bool) -> Images:
    """Sides from 300 to 1600 pixels; `multiples`: of 28, so that nothing is resized."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(300, 1601, (IMAGES, 2))
    if multiples:
        sides = sides // 28 * 28
    sizes = [(h, w, *patch_grid(w, h, DataRecipe.min_pixels, max_pixels)) for h, w in sides.tolist()]
    shapes = torch.tensor(sizes)
    total = 3 * int(shapes[:, :2].prod(1).sum())
    return Images(torch.randint(0, 256, (total,), dtype=torch.uint8, device="cuda"), shapes)


def rows(copy: float) -> Iterator[Row]:
    """Bandwidth of each kind of sizes, and images a second beside the CPU path and PyTorch's interpolation."""
    for kind, max_pixels, multiples in (
        ("JPEG sizes", DataRecipe.max_pixels, False),
        ("nothing to resize", DataRecipe.max_pixels, True),
        ("at most 512 x 512", 512 * 512, False),
    ):
        sets = [draw(seed, max_pixels, multiples) for seed in range(SETS)]
        # Each call copies a table from the host, so fewer calls can be queued ahead.
        micro = microseconds([partial(resize_patches, *one) for one in sets])
        moved = sum(one.bytes for one in sets) // SETS
        yield traffic(f"ops/patches, {kind}", micro, moved, FORMULA, copy, GOAL)
        speed = IMAGES / (1e-6 * micro)
        cores = len(os.sched_getaffinity(0))
        name, reference = f"ops/patches, {kind}", f"CPU path, {cores} threads"
        cpu = speed_of_cpu(sets[0], cores)
        measure, goal = "images to patches, decoding apart", f">= {CPU_GOAL:g}x"
        yield Row(name, measure, speed, "images/s", reference, cpu, goal, speed >= CPU_GOAL * cpu)
        peer = ON_CPU / (1e-6 * microseconds([partial(interpolate, sets[0])], 3))
        yield Row(
            name, measure, speed, "images/s", "PyTorch's interpolate on this GPU", peer, "none, for comparison", True
        )


def speed_of_cpu(images: Images, cores: int) -> float:
    """Images a second of the native decoder's kernel, one image a thread, the median of some rounds."""
    work, first = [], 0
    for height, width, across, down in images.sizes[:ON_CPU].tolist():
        count = 3 * height * width
        pixels = images.pixels[first : first + count].cpu().numpy().reshape(height, width, 3)
        words = np.dstack([pixels, np.zeros((height, width, 1), np.uint8)]).view(np.uint32)[:, :, 0].copy()
        work.append((words, across, down, SCALE, SHIFT, np.zeros((across * down, PATCH_VALUES), np.float32)))
        first += count
    resize_on_cpu(*work[0])  # compiles
    times = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(4):
            start = time.perf_counter()
            list(pool.map(lambda one: resize_on_cpu(*one), work))
            times.append(time.perf_counter() - start)
    return len(work) / statistics.median(times[1:])


def interpolate(images: Images) -> None:
    """What PyTorch can do: an image at a time, in float32, then the order of patches."""
    mean, std = (torch.tensor(x, device="cuda")[:, None, None] for x in (MEAN, STD))
    first = 0
    for height, width, down, across in images.sizes[:ON_CPU].tolist():
        count = 3 * height * width
        pixels = images.pixels[first : first + count].view(height, width, 3).permute(2, 0, 1)[None].float()
        size = (down * PATCH, across * PATCH)
        resized = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)[0]
        values = (resized.round().clamp(0, 255) / 255 - mean) / std
        blocks = values.view(3, down // 2, 2, PATCH, across // 2, 2, PATCH).permute(1, 4, 2, 5, 0, 3, 6)
        blocks.reshape(-1, PATCH_VALUES).bfloat16()
        first += count
