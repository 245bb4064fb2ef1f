"""Hashes of photographs: near each other for one picture, far for two, the same for the same bytes."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
from PIL import Image

from onevision.concepts.hashes import MARGIN, NOTHING, image_hash
from onevision.data.image import ImageError, decode_image

PHOTOGRAPHS = [
    *(Path(skimage.__file__).parent / "data" / name for name in (
        "astronaut.png", "chelsea.png", "coffee.png", "retina.jpg", "rocket.jpg", "hubble_deep_field.jpg",
        "brick.png", "grass.png", "gravel.png", "camera.png", "text.png",
    )),
    *(Path(sklearn.__file__).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")),
]  # fmt: skip
NEAR = 5  # bits: the most that one of the changes below makes is 4
FAR = 10


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    width, height = image.size
    return image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


CHANGES = {
    "quality 90": lambda image: encoded(image, quality=90),
    "quality 20": lambda image: encoded(image, quality=20),
    "progressive": lambda image: encoded(image, quality=75, progressive=True),
    "webp": lambda image: encoded(image, "WEBP", quality=60),
    "half": lambda image: encoded(scaled(image, 0.5), quality=85),
    "a third as PNG": lambda image: encoded(scaled(image, 0.33), "PNG"),
    "larger": lambda image: encoded(scaled(image, 1.5), quality=85),
    "lighter": lambda image: encoded(image.point(lambda value: value * 0.9 + 25), quality=85),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_photograph_stays_what_it_is(change: str) -> None:
    distances = []
    for path in PHOTOGRAPHS:
        data = path.read_bytes()
        distances.append(distance(image_hash(data), image_hash(CHANGES[change](decode_image(data)))))
    assert max(distances) <= NEAR, dict(zip([path.name for path in PHOTOGRAPHS], distances, strict=True))
    assert np.mean(distances) < 1.5


def test_two_photographs_are_far_from_each_other() -> None:
    hashes = [image_hash(path.read_bytes()) for path in PHOTOGRAPHS]
    assert min(distance(one, other) for one, other in combinations(hashes, 2)) > FAR
    assert NOTHING not in hashes


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_the_formula(format: str) -> None:
    grey = np.random.default_rng(0).integers(100, 110, (8, 9)).astype(np.uint8)
    data = encoded(Image.fromarray(grey), format)
    expected = sum(
        1 << (8 * row + column)
        for row in range(8)
        for column in range(8)
        if int(grey[row, column + 1]) > int(grey[row, column]) + MARGIN
    )
    assert image_hash(data) == expected != 0


def test_orientation_and_transparency_are_as_in_training() -> None:
    image = decode_image(PHOTOGRAPHS[1].read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert image_hash(encoded(image, exif=exif)) == image_hash(encoded(image))
    layer = image.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").rotate(90).resize(image.size))
    shown = decode_image(encoded(layer, "PNG"))
    assert image_hash(encoded(layer, "PNG")) == image_hash(encoded(shown, "PNG")) != image_hash(encoded(image, "PNG"))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA"])
def test_other_modes_are_hashed(mode: str) -> None:
    image = decode_image(PHOTOGRAPHS[0].read_bytes())
    data = encoded(image.convert(mode), "JPEG" if mode in ("L", "CMYK") else "PNG")
    assert distance(image_hash(data), image_hash(encoded(image))) <= NEAR


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_plain_picture_tells_nothing(grey: int) -> None:
    assert image_hash(encoded(Image.new("L", (200, 300), grey))) == NOTHING


@pytest.mark.parametrize("keep", [0, 3, 0.5])
@pytest.mark.parametrize("name", ["retina.jpg", "chelsea.png"])
def test_a_broken_image_is_refused(name: str, keep: float) -> None:
    data = (Path(skimage.__file__).parent / "data" / name).read_bytes()
    with pytest.raises(ImageError, match="image_undecodable"):
        image_hash(data[: int(keep * len(data)) if keep < 1 else int(keep)])
