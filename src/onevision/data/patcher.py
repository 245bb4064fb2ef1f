"""Encoded images -> the patches of a batch, resized where the recipe says: on the host, or on the device.

On the host a decoder does all of it, and 4 bytes a value travel to the device. With `data.resize=device` the decoded
pixels travel instead, a byte each, and op 1 of `cuda/` (`onevision.ops.patches`) resizes, normalises and cuts them
there. The values are the same, bit for bit, as far as the pixels are: a device rounds them to the model's dtype, as
the model does with the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from onevision.data.buffers import Buffers
from onevision.data.decode import ImageDecoder, PixelDecoder, image_decoder, pixel_decoder
from onevision.data.image import MERGE, PATCH_VALUES, ImageError
from onevision.ops.library import load
from onevision.ops.patches import resize_patches
from onevision.recipe import DataRecipe


class Patcher(Protocol):
    """What makes the patches of a batch. It may be used by several threads at once."""

    def make(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, list[ImageError | None]]:
        """Decode images and resize each to its grid.

        Args:
            images: encoded files.
            sizes: width and height of each in pixels.
            grids: rows and columns of patches of each.

        Returns:
            [P, 588] in the order of `onevision.data.decode.ImageDecoder`, and one entry an image: None, or
            image_undecodable; the rows of such an image are zeros.
        """
        ...


class HostPatcher:
    """Patches in float32 in the host's memory, which is pinned where they go to a GPU."""

    def __init__(self, decoder: ImageDecoder, device: torch.device, rows: int) -> None:
        """`rows` is the most patches that a batch of training has."""
        self.decoder = decoder
        self._buffers = None if device.type == "cuda" else Buffers(rows, PATCH_VALUES)

    def make(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, list[ImageError | None]]:
        count = sum(rows * columns for rows, columns in grids)
        if self._buffers is None:  # PyTorch keeps pinned memory, and knows of copies from it that are on their way
            patches = torch.empty((count, PATCH_VALUES), pin_memory=True)
        else:
            patches = torch.from_numpy(self._buffers.take(count))
        return patches, self.decoder.patches(images, grids, patches.numpy())


class DevicePatcher:
    """Patches in the model's dtype on the device; made on the CUDA stream that is current."""

    def __init__(self, decoder: PixelDecoder, device: torch.device, dtype: torch.dtype) -> None:
        """
        Raises:
            InputError: the ops of cuda/ are not built.
        """
        load()
        self.decoder, self.device, self.dtype = decoder, device, dtype
        self._pinned = decoder.device.type == "cpu" and device.type == "cuda"

    def make(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, list[ImageError | None]]:
        shapes = [(height, width) for width, height in sizes]
        count = sum(3 * height * width for height, width in shapes)
        pixels = torch.empty(count, dtype=torch.uint8, device=self.decoder.device, pin_memory=self._pinned)
        errors = self.decoder.pixels(images, shapes, pixels)
        table = [(*shape, *grid) for shape, grid in zip(shapes, grids, strict=True)]
        sized = torch.tensor(table, dtype=torch.int64).reshape(-1, 4)
        patches = resize_patches(pixels.to(self.device, non_blocking=True), sized, self.dtype)
        start = 0
        for (rows, columns), error in zip(grids, errors, strict=True):
            if error is not None:
                patches[start : start + rows * columns] = 0
            start += rows * columns
        return patches, errors


def image_patcher(data: DataRecipe, device: torch.device, dtype: torch.dtype, packs: int = 1) -> Patcher:
    """The patcher of a recipe, for batches of some packs.

    Raises:
        InputError: what its decoder needs is not there, or the ops of cuda/ are not built.
    """
    if data.resize == "device":
        return DevicePatcher(pixel_decoder(data.decoder, device, data.hw_decoder_load), device, dtype)
    return HostPatcher(image_decoder(data.decoder), device, packs * data.sequence_length * MERGE**2)
