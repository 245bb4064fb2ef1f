"""The default decoder: libjpeg-turbo for JPEG, Pillow for the rest, compiled kernels for all that follows.

Threads run side by side: neither libjpeg-turbo nor the kernels hold the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg

from onevision.data.decode.each import each_image
from onevision.data.decode.kernels import resize_patches
from onevision.data.image import SCALE, SHIFT, ImageError, open_image, to_rgb


class NativeDecoder:
    """See `onevision.data.decode.ImageDecoder`."""

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: np.ndarray
    ) -> list[ImageError | None]:
        return each_image(images, grids, out, _write)


def _write(data: bytes, rows: int, columns: int, out: np.ndarray) -> None:
    resize_patches(decode_words(data), rows, columns, SCALE, SHIFT, out)


def decode_words(data: bytes) -> np.ndarray:
    """Decode to uint32 [H, W]; the bytes of a pixel are red, green, blue and one without meaning.

    The pixels are those of `onevision.data.image.decode_image`.

    Raises:
        ImageError: image_undecodable.
    """
    image = open_image(data)
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGBX", strict=True)
        except ValueError:
            pass  # it complains of more than Pillow does: let Pillow decide
        else:
            if pixels.shape[:2] == (image.height, image.width):
                return pixels.view(np.uint32)[:, :, 0]
    image = to_rgb(image)
    # Copied because an array that may not be written is another type, for which the kernels would be compiled anew.
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32).reshape(image.height, image.width).copy()
