"""Encoded images -> patches, by one of several decoders (`data.decoder` of the recipe).

    native       libjpeg-turbo and compiled kernels; the values of `pillow`, bit for bit, several times faster
    pillow       Pillow and NumPy: the reference
    dali         NVIDIA DALI on the CPU; Pillow where DALI does not give Pillow's pixels
    dali_mixed   the same on the GPU of this rank

All decode, resize (antialiased bicubic), normalise and cut into patches, and all refuse the images that Pillow refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

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


def image_decoder(name: str) -> ImageDecoder:
    """The decoder of a name; its libraries are imported only now.

    Raises:
        InputError: no such decoder, or what it needs is not installed.
    """
    if name == "native":
        from onevision.data.decode.native import NativeDecoder

        return NativeDecoder()
    if name == "pillow":
        from onevision.data.decode.pillow import PillowDecoder

        return PillowDecoder()
    if name in ("dali", "dali_mixed"):
        from onevision.data.decode.dali import DaliDecoder

        return DaliDecoder(mixed=name == "dali_mixed")
    raise InputError(f"data.decoder={name}: it is one of native, pillow, dali, dali_mixed")


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
