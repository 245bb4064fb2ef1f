"""Images: size from the header, the resize rule, and pixels. Patches are made in onevision.data.decode.

The numbers are those of Qwen2-VL's image processor with patch 14, merge 2 and temporal patch 1. The orientation that a
camera notes in EXIF is ignored everywhere, so that the header alone tells the number of tokens.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from onevision.errors import DataError

PATCH = 14  # pixels along a patch's side
MERGE = 2  # patches along the side of the block that becomes one token
FACTOR = PATCH * MERGE
PATCH_VALUES = 3 * PATCH * PATCH  # 588
MIN_SIDE = 8  # pixels
MAX_ASPECT = 200  # longer side over shorter, the limit of the resize rule
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of values in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of 16 bits a pixel
NO_RANGE = ("I", "F")  # Pillow's modes of 32 bits a pixel: a file does not say which value is white
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}

# A byte times SCALE plus SHIFT is the normalised value; float32 [3].
SCALE = (1.0 / (255.0 * np.array(STD))).astype(np.float32)
SHIFT = (-np.array(MEAN) / np.array(STD)).astype(np.float32)
# What Pillow's decoders raise on broken files.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(DataError):
    """An image that cannot be used: `reason` in snake_case is counted, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file tell: pixels, and the file name suffix of its format."""

    width: int
    height: int
    suffix: str


def image_header(data: bytes) -> ImageHeader:
    """Read the header, without decoding pixels.

    Raises:
        ImageError: image_undecodable.
    """
    image = open_image(data)
    return ImageHeader(image.width, image.height, SUFFIXES[str(image.format)])


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header.

    Raises:
        ImageError: image_undecodable.
    """
    header = image_header(data)
    return header.width, header.height


def check_size(width: int, height: int) -> None:
    """Refuse sizes that the resize rule cannot serve.

    Raises:
        ImageError: image_too_small, image_aspect.
    """
    if min(width, height) < MIN_SIDE:
        raise ImageError("image_too_small", f"{width}x{height}: a side is below {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError("image_aspect", f"{width}x{height}: the sides differ by a factor above {MAX_ASPECT}")


def decode_image(data: bytes) -> Image.Image:
    """Decode to RGB; transparent pixels show white behind them, and of 16 bits the upper 8 count, in grey as in colour.

    Raises:
        ImageError: image_undecodable.
    """
    return to_rgb(open_image(data))


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image, as `decode_image`.

    Raises:
        ImageError: image_undecodable.
    """
    try:
        if image.mode in DEEP_GREY:
            image = _eight_bits(image)
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            layer = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
        return image.convert("RGB")
    except _BROKEN as error:
        raise ImageError("image_undecodable", _line(error)) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its upper 8, as Pillow reads colours of 16 bits; of grey it takes all above 255 for white."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")  # the value that is transparent
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int, factor: int = FACTOR) -> tuple[int, int]:
    """Height and width after resizing: multiples of `factor`, the area within the limits, the aspect nearly kept.

    Qwen2-VL's rule (arXiv 2409.12191 and its released processor): round each side to a multiple of `factor`; when
    that is too large or too small an area, scale the original sides by the square root of the area's excess and
    round down, or up.

    Raises:
        ImageError: image_aspect.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError("image_aspect", f"{width}x{height}: the sides differ by a factor above {MAX_ASPECT}")
    rounded = [round(side / factor) * factor for side in (height, width)]
    area = rounded[0] * rounded[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return rounded[0], rounded[1]


def patch_grid(width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Rows and columns of patches (both even) of an image of `width` x `height` pixels.

    Raises:
        ImageError: image_too_small, image_aspect.
    """
    check_size(width, height)
    resized_height, resized_width = smart_resize(height, width, min_pixels, max_pixels)
    return resized_height // PATCH, resized_width // PATCH


def open_image(data: bytes) -> Image.Image:
    """Read the header with Pillow; pixels are decoded when they are asked for.

    Raises:
        ImageError: image_undecodable, of a header that promises gigabytes of pixels, or pixels of 32 bits, too.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a header that promises gigabytes of pixels.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except _BROKEN as error:
        raise ImageError("image_undecodable", _line(error)) from error
    if image.mode in NO_RANGE:
        raise ImageError("image_undecodable", f"its pixels have 32 bits (mode {image.mode}), not 8 or 16")
    return image


def _line(error: BaseException) -> str:
    text = str(error).partition("<")[0].strip() if isinstance(error, OSError) else str(error).strip()
    return " ".join(text.split()) or type(error).__name__
