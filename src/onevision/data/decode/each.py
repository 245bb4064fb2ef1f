"""What decoders share that take one image after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onevision.data.image import ImageError


def each_image(
    images: Sequence[bytes],
    grids: Sequence[tuple[int, int]],
    out: np.ndarray,
    write: Callable[[bytes, int, int, np.ndarray], None],
) -> list[ImageError | None]:
    """`write(image, rows, columns, its rows of out)` for each image, as `onevision.data.decode.ImageDecoder.patches`.

    The rows of an image for which it raises ImageError become zeros.
    """
    errors: list[ImageError | None] = []
    start = 0
    for data, (rows, columns) in zip(images, grids, strict=True):
        part = out[start : start + rows * columns]
        start += rows * columns
        try:
            write(data, rows, columns, part)
            errors.append(None)
        except ImageError as error:
            part[:] = 0
            errors.append(error)
    return errors
