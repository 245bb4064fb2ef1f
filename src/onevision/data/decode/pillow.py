"""The reference decoder: Pillow decodes and resizes, NumPy normalises and cuts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from onevision.data.decode.each import check_pixels, each_image, patch_parts, pixel_parts
from onevision.data.image import MERGE, PATCH, SCALE, SHIFT, ImageError, decode_image


class PillowDecoder:
    """See `onevision.data.decode.ImageDecoder` and `PixelDecoder`."""

    device = torch.device("cpu")

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: np.ndarray
    ) -> list[ImageError | None]:
        return each_image(images, patch_parts(grids, out), _write)

    def pixels(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], out: torch.Tensor
    ) -> list[ImageError | None]:
        return each_image(images, pixel_parts(sizes, out.numpy()), write_pixels)


def write_pixels(data: bytes, out: np.ndarray) -> None:
    """Decode to uint8 [H, W, 3].

    Raises:
        ImageError: image_undecodable.
    """
    pixels = np.asarray(decode_image(data))
    check_pixels(pixels.shape, out.shape)
    out[:] = pixels


def _write(data: bytes, out: np.ndarray) -> None:
    image = decode_image(data)
    size = (out.shape[1] * PATCH, out.shape[0] * PATCH)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    cut(np.asarray(image), out)


def cut(pixels: np.ndarray, out: np.ndarray) -> None:
    """Normalise pixels, uint8 [H, W, 3] with sides that are multiples of 28, and write their patches to out."""
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    blocks = pixels.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    values = out.reshape(rows * columns, 3, PATCH * PATCH)  # a view
    values[:] = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(values.shape)
    values *= SCALE[:, np.newaxis]
    values += SHIFT[:, np.newaxis]
