"""Decoded images into patches: what `onevision.data.decode` does with pixels, for many images at once."""

from __future__ import annotations

import torch
from torch import Tensor

from onevision.data.image import PATCH_VALUES, SCALE, SHIFT


def resize_patches(pixels: Tensor, sizes: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Resize images (antialiased bicubic), normalise them, and cut them into patches.

    The sums are Pillow's, bit for bit; only the normalised value is rounded to `dtype`.

    Args:
        pixels: uint8 [B], contiguous: all images end to end, each [height, width, 3].
        sizes: int64 [I, 4] on the CPU: height, width, and rows and columns of patches, both even (`patch_grid`).
        dtype: float32 or bfloat16.

    Returns:
        [P, 588] in the order of `onevision.data.decode.ImageDecoder`.
    """
    patches = int(sizes[:, 2:].prod(1).sum())
    scale, shift = torch.from_numpy(SCALE), torch.from_numpy(SHIFT)
    return torch.ops.onevision.resize_patches(pixels, sizes, scale, shift, patches, dtype)


def register(namespace: str) -> None:
    """Shape of the op in a namespace."""

    def shape(
        pixels: Tensor, sizes: Tensor, scale: Tensor, shift: Tensor, patches: int, dtype: torch.dtype
    ) -> Tensor:
        return pixels.new_empty((patches, PATCH_VALUES), dtype=dtype)

    torch.library.register_fake(f"{namespace}::resize_patches", shape)
