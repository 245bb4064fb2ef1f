"""What decoders share that take one image after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onevision.data.image import ImageError


def each_image(
    images: Sequence[bytes], parts: Sequence[np.ndarray], write: Callable[[bytes, np.ndarray], None]
) -> list[ImageError | None]:
    """`write(image, its part of the result)` for each image: None, or the ImageError that it raises, leaving zeros."""
    errors: list[ImageError | None] = []
    for data, part in zip(images, parts, strict=True):
        try:
            write(data, part)
            errors.append(None)
        except ImageError as error:
            part[:] = 0
            errors.append(error)
    return errors


def patch_parts(grids: Sequence[tuple[int, int]], out: np.ndarray) -> list[np.ndarray]:
    """The rows of each image in out [P, 588]: [rows, columns, 588] for its grid."""
    counts = [rows * columns for rows, columns in grids]
    parts = np.split(out, np.cumsum(counts, dtype=np.int64)[:-1]) if counts else []
    return [part.reshape(*grid, out.shape[1]) for part, grid in zip(parts, grids, strict=True)]


def pixel_parts(sizes: Sequence[tuple[int, int]], out: np.ndarray) -> list[np.ndarray]:
    """The pixels of each image in out, uint8 [bytes]: [height, width, 3] for its size (height, width)."""
    counts = [3 * height * width for height, width in sizes]
    parts = np.split(out, np.cumsum(counts, dtype=np.int64)[:-1]) if counts else []
    return [part.reshape(*size, 3) for part, size in zip(parts, sizes, strict=True)]


def check_pixels(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse pixels [H, W, ...] of another size than was measured.

    Raises:
        ImageError: image_undecodable.
    """
    if found[:2] != expected[:2]:
        raise ImageError("image_undecodable", f"{found[1]}x{found[0]} pixels, not {expected[1]}x{expected[0]}")
