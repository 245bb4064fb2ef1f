"""Perceptual hashes of images: those of one picture stored twice, at another size or quality, differ in few bits.

The difference hash ("dHash"): the image in grey (ITU-R 601 luma, 0 to 255, white behind transparency, the orientation
in EXIF ignored as in training) is shrunk to 9 x 8 pixels g with a triangle filter that covers all pixels, and

    bit 8 r + c of the hash = 1 if g[r, c + 1] > g[r, c] + MARGIN, else 0        r, c = 0 ... 7

so it holds where the picture gets lighter from left to right, which neither size nor brightness changes. MARGIN keeps
the noise of compression out of plain areas. The picture may be cropped, turned or mirrored: then it is another one.

A picture that gets lighter nowhere, such as a plain one, has the hash 0; so has one that cannot be decoded. A hash of 0
tells nothing, and must not be compared.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from onevision.data.image import open_image, to_rgb

NOTHING = 0  # the hash that tells nothing
MARGIN = 2  # grey levels
SIDE = 8  # bits along a side of the 64
_DECODED = 128  # pixels along each side that a JPEG is decoded to at least: what is nearer to 9 x 8 is less exact


def image_hash(data: bytes) -> int:
    """The hash of an encoded image, 64 bits.

    Raises:
        ImageError: image_undecodable.
    """
    small = Image.fromarray(_grey(data)).resize((SIDE + 1, SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small, np.int16)
    lighter = grey[:, 1:] > grey[:, :-1] + MARGIN
    return int(np.packbits(lighter, bitorder="little").view("<u8")[0])


def _grey(data: bytes) -> NDArray[np.uint8]:
    """The image in grey, [H, W]; a JPEG at a reduced size, for which libjpeg-turbo computes only what it needs.

    Raises:
        ImageError: image_undecodable.
    """
    image = open_image(data)
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        try:
            return simplejpeg.decode_jpeg(data, "GRAY", min_width=_DECODED, min_height=_DECODED, strict=True)[:, :, 0]
        except ValueError:
            pass  # it complains of more than Pillow does: let Pillow decide
    return np.asarray(to_rgb(image).convert("L"))
