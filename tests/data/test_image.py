from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

from onevision.data.image import (
    ImageError,
    check_size,
    decode_image,
    image_header,
    image_patches,
    image_size,
    patch_grid,
    smart_resize,
)
from onevision.errors import DataError
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


def encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def variants() -> dict[str, bytes]:
    base = decode_image(rgb(150, 97))
    clear = base.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(base.size))
    palette = base.quantize(32)
    palette.info["transparency"] = 3
    cases = {f"{width}x{height}": rgb(width, height) for width, height in [(56, 56), (8, 9), (30, 300), (8, 1600)]}
    cases |= {f"jpeg {mode}": encoded(base.convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK")}
    cases |= {f"png {mode}": encoded(base.convert(mode), "PNG") for mode in ("L", "LA", "P", "1")}
    cases |= {"png alpha": encoded(clear, "PNG"), "png palette alpha": encoded(palette, "PNG")}
    cases |= {"png 16 bit": encoded(base.convert("I;16"), "PNG"), "webp": encoded(clear, "WEBP")}
    cases |= {"gif": encoded(base.quantize(16), "GIF"), "bmp": encoded(base, "BMP"), "tiff": encoded(base, "TIFF")}
    return cases


@pytest.mark.parametrize("limits", [(3136, 2_560_000), (784, 28 * 28 * 6)])
@pytest.mark.parametrize("name", variants())
def test_patches_are_those_of_the_qwen_processor(name: str, limits: tuple[int, int]) -> None:
    data = variants()[name]
    processor = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1], temporal_patch_size=1)
    reference = processor(Image.open(io.BytesIO(data)), return_tensors="np")
    patches, grid = image_patches(data, *limits)
    assert grid == tuple(reference["image_grid_thw"][0].tolist())
    assert patches.dtype == np.float32 and patches.shape == reference["pixel_values"].shape
    # Equal up to float32 rounding, far below the step of 1 / 255 / std = 0.0146 between two pixel values.
    np.testing.assert_allclose(patches, reference["pixel_values"], rtol=0, atol=1e-6)
    assert patches.std() > 0.05


def test_patch_order_by_hand() -> None:
    # Each 14 x 14 patch has a colour of its own, no resizing: rows of the result must come block by block.
    rows, columns = 4, 6
    colours = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns) * 10
    pixels = np.kron(colours, np.ones((14, 14), np.uint8))
    image = Image.fromarray(np.stack([pixels, pixels // 2, np.zeros_like(pixels)], axis=-1))
    patches, grid = image_patches(encoded(image, "PNG"), 784, 2_560_000)
    assert grid == (1, rows, columns)
    red = np.rint((patches[:, 0] * 0.26862954 + 0.48145466) * 255).astype(int)
    order = [(2 * r + i, 2 * c + j) for r in range(2) for c in range(3) for i in range(2) for j in range(2)]
    assert red.tolist() == [colours[place] for place in order]
    green = np.rint((patches[:, 196] * 0.26130258 + 0.4578275) * 255).astype(int)
    assert green.tolist() == [colours[place] // 2 for place in order]


def test_orientation_of_the_camera_is_ignored() -> None:
    image = decode_image(rgb(90, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif)
    assert image_size(buffer.getvalue()) == (90, 40)
    turned, grid = image_patches(buffer.getvalue(), 784, 2_560_000)
    plain, plain_grid = image_patches(encoded(image, "PNG"), 784, 2_560_000)
    assert grid == plain_grid and np.array_equal(turned, plain)


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
        lambda: image_patches(rgb(width, height), 3136, 2_560_000),
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


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_a_good_header_with_a_broken_body_fails_only_when_decoded(format: str) -> None:
    data = image_bytes(200, 160, format=format)
    truncated = data[: len(data) // 2]
    assert image_size(truncated) == (200, 160)
    with pytest.raises(ImageError) as raised:
        image_patches(truncated, 3136, 2_560_000)
    assert raised.value.reason == "image_undecodable" and isinstance(raised.value, DataError)


def test_a_header_that_promises_gigabytes_is_refused() -> None:
    data = bytearray(rgb(40, 40))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the width and height of a PNG
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageError, match="decompression bomb"):
        image_header(bytes(data))


@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.floats(0.2, 1),
)
@settings(max_examples=400, deadline=None)
def test_damaged_files_raise_nothing_else(format: str, changes: list[tuple[float, int]], end: float) -> None:
    data = bytearray(image_bytes(24, 20, format=format))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        patches, grid = image_patches(bytes(data[: int(end * len(data))]), 784, 50_000)
    except ImageError:
        return
    assert patches.shape == (grid[1] * grid[2], 588)
