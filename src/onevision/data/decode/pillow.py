"""The reference decoder: Pillow decodes and resizes, NumPy normalises and cuts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from onevision.data.image import MERGE, PATCH, SCALE, SHIFT, ImageError, decode_image


class PillowDecoder:
    """See `onevision.data.decode.ImageDecoder`."""

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: np.ndarray
    ) -> list[ImageError | None]:
        errors: list[ImageError | None] = []
        start = 0
        for data, (rows, columns) in zip(images, grids, strict=True):
            part = out[start : start + rows * columns]
            start += rows * columns
            try:
                image = decode_image(data)
            except ImageError as error:
                part[:] = 0
                errors.append(error)
                continue
            size = (columns * PATCH, rows * PATCH)
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
            cut(np.asarray(image), part)
            errors.append(None)
        return errors


def cut(pixels: np.ndarray, out: np.ndarray) -> None:
    """Normalise pixels, uint8 [H, W, 3] with sides that are multiples of 28, and write their patches to out."""
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    blocks = pixels.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    values = out.reshape(rows * columns, 3, PATCH * PATCH)  # a view
    values[:] = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(values.shape)
    values *= SCALE[:, np.newaxis]
    values += SHIFT[:, np.newaxis]
