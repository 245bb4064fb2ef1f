from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from onevision.data.decode.native import decode_words
from onevision.data.image import decode_image
from tests.data.decode.cases import decoder, encoded, variants


@pytest.mark.parametrize("name", variants())
def test_the_decoded_pixels_are_those_of_pillow(name: str) -> None:
    data = variants()[name]
    words = decode_words(data)
    assert words.dtype == np.uint32 and words.flags.writeable and words.flags.c_contiguous
    pixels = words.view(np.uint8).reshape(*words.shape, 4)[:, :, :3]
    assert np.array_equal(pixels, np.asarray(decode_image(data)))


def resized_alike(height: int, width: int, rows: int, columns: int) -> None:
    pixels = np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "BMP")
    found, expected = np.full((2, rows * columns, 588), np.nan, np.float32)
    assert decoder("native").patches([data], [(rows, columns)], found) == [None]
    assert decoder("pillow").patches([data], [(rows, columns)], expected) == [None]
    assert np.array_equal(found, expected), (height, width, rows, columns)


def test_resizing_is_that_of_pillow_bit_for_bit() -> None:
    # Noise, whose overshoot is cut off between the two passes: it shows in which order they were made.
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = np.exp(rng.uniform(np.log(8), np.log(500), 2)).astype(int).tolist()
        rows, columns = (2 * rng.integers(1, 12, 2)).tolist()
        resized_alike(height, width, rows, columns)


@pytest.mark.parametrize("less", range(-3, 4))
def test_the_order_of_the_passes_at_its_edge(less: int) -> None:
    for rows, columns in ((10, 10), (4, 22), (22, 4)):
        for shrunk in (1, 2, 40, 41):
            resized_alike(rows * 14 + shrunk, columns * 14 + shrunk // 2 + less, rows, columns)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(8, 1600, 2, 100), (1600, 8, 100, 2), (3000, 40, 4, 2), (40, 3000, 2, 4), (280, 280, 20, 20), (31, 280, 2, 20)],
)
def test_extreme_sizes(height: int, width: int, rows: int, columns: int) -> None:
    resized_alike(height, width, rows, columns)


def test_a_single_pixel_of_input_fills_all() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (255, 0, 128)).save(buffer, "PNG")
    found, expected = np.full((2, 4, 588), np.nan, np.float32)
    decoder("native").patches([buffer.getvalue()], [(2, 2)], found)
    decoder("pillow").patches([buffer.getvalue()], [(2, 2)], expected)
    assert np.array_equal(found, expected) and np.isfinite(found).all()
