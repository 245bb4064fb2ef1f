"""Image files of every kind that a corpus may hold, and the decoders to try them with."""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import sklearn
from PIL import Image

from onevision.data.decode import ImageDecoder, image_decoder
from tests.fixtures import image_bytes

PHOTOGRAPHS = {
    "astronaut": Path(skimage.__file__).parent / "data" / "astronaut.png",
    "chelsea": Path(skimage.__file__).parent / "data" / "chelsea.png",
    "coffee": Path(skimage.__file__).parent / "data" / "coffee.png",
    "retina": Path(skimage.__file__).parent / "data" / "retina.jpg",
    "china": Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg",
    "flower": Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg",
}
NO_DALI = pytest.mark.skipif(
    importlib.util.find_spec("nvidia.dali") is None if importlib.util.find_spec("nvidia") else True,
    reason="nvidia-dali-cuda130 is not installed",
)
DECODERS = ["native", "pillow", pytest.param("dali", marks=NO_DALI)]
_made: dict[str, ImageDecoder] = {}


def decoder(name: str) -> ImageDecoder:
    """One of a name for all tests: DALI builds its pipeline at the first batch."""
    if name not in _made:
        _made[name] = image_decoder(name)
    return _made[name]


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def oriented(image: Image.Image, orientation: int) -> bytes:
    """A JPEG whose camera noted how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=95, exif=exif)


def deep(image: Image.Image) -> Image.Image:
    """An image in grey of 16 bits, whose lower 8 say nothing of the upper ones."""
    grey = np.asarray(image.convert("L"), np.uint16)
    return Image.fromarray(grey * 256 + (grey * 37) % 256)


@cache
def variants() -> dict[str, bytes]:
    base = Image.open(io.BytesIO(image_bytes(150, 97, seed=1)))
    clear = base.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(base.size))
    palette = base.quantize(32)
    palette.info["transparency"] = 3
    other = base.transpose(Image.Transpose.ROTATE_180)
    sizes = [(56, 56), (8, 9), (30, 300), (8, 1600), (61, 57)]
    cases = {f"{width}x{height}": image_bytes(width, height, seed=1) for width, height in sizes}
    cases |= {f"jpeg {mode}": encoded(base.convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK")}
    cases |= {f"jpeg {n}": encoded(base, "JPEG", subsampling=n) for n in ("4:4:4", "4:2:2", "4:2:0")}
    cases |= {"jpeg progressive": encoded(base, "JPEG", progressive=True, quality=90)}
    cases |= {"jpeg stored as RGB": encoded(base, "JPEG", keep_rgb=True), "jpeg rest": encoded(base, "JPEG") + b"rest"}
    cases |= {"jpeg restarts": encoded(base, "JPEG", restart_marker_rows=1)}
    cases |= {f"jpeg orientation {n}": oriented(base, n) for n in range(1, 9)}
    cases |= {"mpo": encoded(base, "MPO", save_all=True, append_images=[other])}
    cases |= {f"png {mode}": encoded(base.convert(mode), "PNG") for mode in ("L", "LA", "P", "1")}
    cases |= {"png alpha": encoded(clear, "PNG"), "png palette alpha": encoded(palette, "PNG")}
    cases |= {"png 16 bit": encoded(deep(base), "PNG"), "webp": encoded(clear, "WEBP")}
    cases |= {"gif": encoded(base.quantize(16), "GIF"), "bmp": encoded(base, "BMP"), "tiff": encoded(base, "TIFF")}
    cases |= {"gif animated": encoded(base, "GIF", save_all=True, append_images=[other], duration=100)}
    cases |= {"webp animated": encoded(base, "WEBP", save_all=True, append_images=[other])}
    cases |= {"tiff lzw": encoded(base, "TIFF", compression="tiff_lzw")}
    return cases


def photograph(name: str, size: tuple[int, int] | None = None) -> bytes:
    """A photograph as JPEG, resized beforehand where a size is given."""
    image = Image.open(PHOTOGRAPHS[name]).convert("RGB")
    return encoded(image.resize(size) if size else image, "JPEG", quality=90)


def steps(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Difference of normalised values in steps of a byte."""
    scale = 255 * np.repeat((0.26862954, 0.26130258, 0.27577711), 196)
    return np.abs(values - reference) * scale
