from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

from onevision.data.image import (
    ImageError,
    check_size,
    image_header,
    patch_grid,
    smart_resize,
)
from tests.fixtures import image_bytes

LIMITS = [(3136, 2_560_000), (784, 784), (28 * 28 * 4, 28 * 28 * 16), (200_704, 1_605_632)]


@pytest.mark.parametrize("limits", LIMITS)
def test_resize_rule_is_the_published_one(limits: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(8), np.log(6000), (5000, 2))).astype(int).tolist()
    sizes += [(side, 14 * k) for side in (8, 27, 28, 29, 56) for k in range(1, 100)]  # exact halves round to even
    compared = 0
    for height, width in sizes:
        if max(height, width) > 200 * min(height, width):
            continue
        expected = reference_resize(height, width, factor=28, min_pixels=limits[0], max_pixels=limits[1])
        assert smart_resize(height, width, *limits) == expected
        compared += 1
    assert compared > 4900


@given(width=st.integers(8, 3000), height=st.integers(8, 3000), limits=st.sampled_from(LIMITS[:1] + LIMITS[2:]))
def test_grid_is_even_and_within_the_limits(width: int, height: int, limits: tuple[int, int]) -> None:
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ImageError):
            patch_grid(width, height, *limits)
        return
    rows, columns = patch_grid(width, height, *limits)
    assert rows > 0 and columns > 0 and rows % 2 == 0 and columns % 2 == 0
    narrow = min(rows, columns) == 2  # one block cannot be made narrower
    assert rows * columns * 196 >= limits[0]
    assert rows * columns * 196 <= limits[1] or narrow


def rgb(width: int, height: int) -> bytes:
    return image_bytes(width, height, seed=1)


@pytest.mark.parametrize("format,suffix", [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")])
def test_header_names_size_and_suffix(format: str, suffix: str) -> None:
    header = image_header(image_bytes(33, 21, format=format))
    assert (header.width, header.height, header.suffix) == (33, 21, suffix)


@pytest.mark.parametrize(
    "width,height,reason",
    [(1, 1, "image_too_small"), (7, 900, "image_too_small"), (20_000, 20, "image_aspect"), (8, 1601, "image_aspect")],
)
def test_sizes_without_a_sensible_grid_are_refused(width: int, height: int, reason: str) -> None:
    for attempt in (
        lambda: check_size(width, height),
        lambda: patch_grid(width, height, 3136, 2_560_000),
    ):
        with pytest.raises(ImageError, match=f"{width}x{height}") as raised:
            attempt()
        assert raised.value.reason == reason


@pytest.mark.parametrize("data", [b"", b"not an image", rgb(40, 40)[:20], b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9])
def test_bytes_that_are_no_image_are_one_line(data: bytes) -> None:
    with pytest.raises(ImageError) as raised:
        image_header(data)
    assert raised.value.reason == "image_undecodable"
    assert "\n" not in str(raised.value) and "0x" not in str(raised.value)


def test_a_header_that_promises_gigabytes_is_refused() -> None:
    data = bytearray(rgb(40, 40))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the width and height of a PNG
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageError, match="decompression bomb"):
        image_header(bytes(data))
