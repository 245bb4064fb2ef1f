"""Encoded images -> patches, or -> pixels of which a device makes patches, by one of several decoders (`data.decoder`).

    native       libjpeg-turbo and compiled kernels; the values of `pillow`, bit for bit, several times faster
    pillow       Pillow and NumPy: the reference
    dali         NVIDIA DALI on the CPU; Pillow where DALI does not give Pillow's pixels. Makes patches only
    dali_mixed   the same on a GPU. Makes pixels only, which stay there

All decode and refuse the images that Pillow refuses; for patches they also resize (antialiased bicubic), normalise and
cut. `onevision.data.patcher` puts the two ways behind one door.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from onevision.data.image import PATCH_VALUES, ImageError, image_size, patch_grid
from onevision.errors import InputError


class ImageDecoder(Protocol):
    """What makes patches. It may be used by several threads at once."""

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: np.ndarray
    ) -> list[ImageError | None]:
        """Decode images and resize each to its grid.

        Args:
            images: encoded files.
            grids: rows and columns of patches of each image, both even, as `patch_grid` gives them.
            out: float32 [P, 588], contiguous, P patches in all; written. A row is one patch, channel first
                (3, 14, 14). The rows of an image come in blocks of 2 x 2 patches: block row, block column, row in the
                block, column in the block.

        Returns:
            One entry an image: None, or image_undecodable; the rows of such an image are zeros.
        """
        ...


class PixelDecoder(Protocol):
    """What makes pixels. It may be used by several threads at once."""

    device: torch.device  # that it writes to

    def pixels(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], out: torch.Tensor
    ) -> list[ImageError | None]:
        """Decode images.

        Args:
            images: encoded files.
            sizes: height and width of each in pixels.
            out: uint8 [B] on `device`; written: all images end to end, each [height, width, 3], red first.

        Returns:
            One entry an image: None, or image_undecodable, also of an image of another size; its pixels are zeros.
        """
        ...


def image_decoder(name: str) -> ImageDecoder:
    """The decoder of a name that makes patches; its libraries are imported only now.

    Raises:
        InputError: no such decoder, or what it needs is not installed.
    """
    if name == "native":
        from onevision.data.decode.native import NativeDecoder

        return NativeDecoder()
    if name == "pillow":
        from onevision.data.decode.pillow import PillowDecoder

        return PillowDecoder()
    if name == "dali":
        from onevision.data.decode.dali import DaliDecoder

        return DaliDecoder()
    raise InputError(f"data.decoder={name}: with data.resize=host it is one of native, pillow, dali")


def pixel_decoder(name: str, device: torch.device, hw_decoder_load: float) -> PixelDecoder:
    """The decoder of a name that makes pixels, for patches that are made on `device`.

    Raises:
        InputError: no such decoder, or what it needs is not there.
    """
    if name == "native":
        from onevision.data.decode.native import NativeDecoder

        return NativeDecoder()
    if name == "pillow":
        from onevision.data.decode.pillow import PillowDecoder

        return PillowDecoder()
    if name == "dali_mixed":
        if device.type != "cuda":
            raise InputError("data.decoder=dali_mixed needs a GPU: use data.decoder=native, which needs none")
        from onevision.data.decode.dali import DaliMixedDecoder

        return DaliMixedDecoder(device, hw_decoder_load)
    raise InputError(f"data.decoder={name}: with data.resize=device it is one of native, pillow, dali_mixed")


def image_patches(
    data: bytes, min_pixels: int, max_pixels: int, decoder: ImageDecoder | None = None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The patches of one image whose grid is not known yet; the decoder is `native` where none is given.

    Returns:
        float32 [h * w, 588] in the order of `ImageDecoder.patches`, and the grid (1, h, w).

    Raises:
        ImageError: image_undecodable, image_too_small, image_aspect.
    """
    rows, columns = patch_grid(*image_size(data), min_pixels, max_pixels)
    out = np.empty((rows * columns, PATCH_VALUES), np.float32)
    (error,) = (decoder or image_decoder("native")).patches([data], [(rows, columns)], out)
    if error:
        raise error
    return out, (1, rows, columns)
