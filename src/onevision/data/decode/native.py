"""The default decoder: libjpeg-turbo for JPEG, Pillow for the rest, compiled kernels for all that follows.

Threads run side by side: neither libjpeg-turbo nor the kernels hold the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from PIL import Image

from onevision.data.decode.each import check_pixels, each_image, patch_parts, pixel_parts
from onevision.data.decode.kernels import resize_patches
from onevision.data.image import PATCH_VALUES, SCALE, SHIFT, ImageError, open_image, to_rgb


class NativeDecoder:
    """See `onevision.data.decode.ImageDecoder` and `PixelDecoder`."""

    device = torch.device("cpu")

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: np.ndarray
    ) -> list[ImageError | None]:
        return each_image(images, patch_parts(grids, out), _write)

    def pixels(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], out: torch.Tensor
    ) -> list[ImageError | None]:
        return each_image(images, pixel_parts(sizes, out.numpy()), _write_pixels)


def _write(data: bytes, out: np.ndarray) -> None:
    rows, columns, _ = out.shape
    resize_patches(decode_words(data), rows, columns, SCALE, SHIFT, out.reshape(-1, PATCH_VALUES))


def _write_pixels(data: bytes, out: np.ndarray) -> None:
    image = open_image(data)
    check_pixels((image.height, image.width), out.shape)
    if _jpeg(image):
        try:
            if simplejpeg.decode_jpeg(data, "RGB", buffer=out, strict=True).shape == out.shape:
                return
        except ValueError:
            pass  # as in decode_words
    out[:] = np.asarray(to_rgb(image))


def decode_words(data: bytes) -> np.ndarray:
    """Decode to uint32 [H, W]; the bytes of a pixel are red, green, blue and one without meaning.

    The pixels are those of `onevision.data.image.decode_image`.

    Raises:
        ImageError: image_undecodable.
    """
    image = open_image(data)
    if _jpeg(image):
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


def _jpeg(image: Image.Image) -> bool:
    """Whether libjpeg-turbo gives Pillow's pixels."""
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
