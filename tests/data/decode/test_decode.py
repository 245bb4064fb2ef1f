from __future__ import annotations

import io
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from onevision.data.decode import PixelDecoder, image_decoder, image_patches, pixel_decoder
from onevision.data.decode.dali import DaliMixedDecoder
from onevision.data.image import ImageError, decode_image, image_size, patch_grid
from onevision.errors import DataError, InputError
from tests.data.decode.cases import DECODERS, NO_DALI, decoder, deep, encoded, oriented, photograph, steps, variants
from tests.fixtures import image_bytes

CPU = torch.device("cpu")


def reference(data: bytes, limits: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int]]:
    processor = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1], temporal_patch_size=1)
    features = processor(Image.open(io.BytesIO(data)), return_tensors="np")
    return features["pixel_values"], tuple(features["image_grid_thw"][0].tolist())


@pytest.mark.parametrize("limits", [(3136, 2_560_000), (784, 28 * 28 * 6)])
@pytest.mark.parametrize("name", [name for name in variants() if name != "png 16 bit"])  # which is white to Qwen's
@pytest.mark.parametrize("decoder_name", ["native", "pillow"])
def test_patches_are_those_of_the_qwen_processor(decoder_name: str, name: str, limits: tuple[int, int]) -> None:
    data = variants()[name]
    expected, expected_grid = reference(data, limits)
    patches, grid = image_patches(data, *limits, decoder(decoder_name))
    assert grid == expected_grid
    assert patches.dtype == np.float32 and patches.shape == expected.shape
    # Equal up to float32 rounding, far below the step of 1 / 255 / std = 0.0146 between two pixel values.
    np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-6)
    assert patches.std() > 0.05


@pytest.mark.parametrize(
    ("name", "size", "limits"),
    [
        ("astronaut", None, (3136, 2_560_000)),  # about as it is
        ("coffee", None, (784, 60_000)),  # down
        ("retina", None, (784, 200_000)),
        ("retina", None, (784, 50_000)),  # far down
        ("china", (640, 480), (3136, 2_560_000)),
        ("flower", (160, 120), (700_000, 2_560_000)),  # up
        ("chelsea", (1200, 40), (3136, 2_560_000)),  # wide
        ("chelsea", (30, 900), (784, 20_000)),  # tall
        ("astronaut", (400, 900), (784, 150_000)),
    ],
)
@pytest.mark.parametrize("decoder_name", DECODERS)
def test_photographs_within_the_tolerance(
    decoder_name: str, name: str, size: tuple[int, int] | None, limits: tuple[int, int]
) -> None:
    data = photograph(name, size)
    expected, expected_grid = reference(data, limits)
    patches, grid = image_patches(data, *limits, decoder(decoder_name))
    assert grid == expected_grid
    difference = steps(patches, expected)
    assert difference.mean() < 0.2
    assert (difference > 1 + 1e-3).mean() < 5e-4


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_patch_order_by_hand(decoder_name: str) -> None:
    # Each 14 x 14 patch has a colour of its own, no resizing: rows of the result must come block by block.
    rows, columns = 4, 6
    colours = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns) * 10
    pixels = np.kron(colours, np.ones((14, 14), np.uint8))
    image = Image.fromarray(np.stack([pixels, pixels // 2, np.zeros_like(pixels)], axis=-1))
    order = [(2 * r + i, 2 * c + j) for r in range(2) for c in range(3) for i in range(2) for j in range(2)]
    for format, options, near in (("PNG", {}, 0), ("JPEG", {"quality": 100, "subsampling": 0}, 2)):
        patches, grid = image_patches(encoded(image, format, **options), 784, 2_560_000, decoder(decoder_name))
        assert grid == (1, rows, columns)
        red = np.rint((patches[:, 100] * 0.26862954 + 0.48145466) * 255).astype(int)
        assert np.abs(red - [colours[place] for place in order]).max() <= near
        green = np.rint((patches[:, 296] * 0.26130258 + 0.4578275) * 255).astype(int)
        assert np.abs(green - [colours[place] // 2 for place in order]).max() <= near


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_orientation_of_the_camera_is_ignored(decoder_name: str) -> None:
    image = Image.open(io.BytesIO(image_bytes(90, 40)))
    plain, plain_grid = image_patches(oriented(image, 1), 784, 2_560_000, decoder(decoder_name))
    for orientation in range(2, 9):
        data = oriented(image, orientation)
        assert image_size(data) == (90, 40)
        turned, grid = image_patches(data, 784, 2_560_000, decoder(decoder_name))
        assert grid == plain_grid and np.array_equal(turned, plain)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("decoder_name", DECODERS)
def test_grey_of_16_bits_is_seen_by_its_upper_8(decoder_name: str, format: str) -> None:
    base = Image.open(io.BytesIO(image_bytes(90, 70))).convert("L")
    plain, _ = image_patches(encoded(base, "PNG"), 784, 2_560_000, decoder(decoder_name))
    found, _ = image_patches(encoded(deep(base), format), 784, 2_560_000, decoder(decoder_name))
    assert np.array_equal(found, plain)


def test_what_is_transparent_in_grey_of_16_bits_is_white() -> None:
    values = np.full((40, 40), 0x8000, np.uint16)
    values[:20] = 0x8001
    png = encoded(Image.fromarray(values), "PNG")
    clear = b"tRNS" + (0x8001).to_bytes(2, "big")
    chunk = (2).to_bytes(4, "big") + clear + zlib.crc32(clear).to_bytes(4, "big")
    pixels = np.asarray(decode_image(png[:33] + chunk + png[33:]))  # behind the header
    assert (pixels[:20] == 255).all() and (pixels[20:] == 128).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_whose_range_nobody_knows_are_refused(dtype: type) -> None:
    data = encoded(Image.fromarray(np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40).astype(dtype)), "TIFF")
    for read in (image_size, decode_image):
        with pytest.raises(ImageError, match="image_undecodable: its pixels have 32 bits"):
            read(data)


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_one_corrupt_image_costs_only_itself(decoder_name: str) -> None:
    whole = image_bytes(90, 70, format="JPEG")
    bad = [whole[: len(whole) // 2], b"", b"not an image", image_bytes(90, 70)[:-200], image_bytes(90, 70)[:30]]
    images = [data for pair in zip([whole] * len(bad), bad, strict=True) for data in pair]
    grids = [patch_grid(90, 70, 784, 2_560_000)] * len(images)
    count = grids[0][0] * grids[0][1]
    out = np.full((count * len(images), 588), np.nan, np.float32)
    errors = decoder(decoder_name).patches(images, grids, out)
    assert [bool(error) for error in errors] == [False, True] * len(bad)
    assert all(error.reason == "image_undecodable" for error in errors if error)
    alone, _ = image_patches(whole, 784, 2_560_000, decoder(decoder_name))
    for n in range(len(images)):
        part = out[n * count : (n + 1) * count]
        assert not part.any() if n % 2 else np.array_equal(part, alone)


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_more_images_than_a_batch_of_many_sizes(decoder_name: str) -> None:
    images = [image_bytes(30 + 7 * n, 200 - 4 * n, format="JPEG" if n % 5 else "PNG") for n in range(40)]
    grids = [patch_grid(*image_size(data), 784, 20_000) for data in images]
    out = np.empty((sum(rows * columns for rows, columns in grids), 588), np.float32)
    assert decoder(decoder_name).patches(images, grids, out) == [None] * 40
    expected = np.concatenate([image_patches(data, 784, 20_000, decoder(decoder_name))[0] for data in images])
    assert np.array_equal(out, expected)
    assert decoder(decoder_name).patches([], [], out[:0]) == []


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_threads_may_share_a_decoder(decoder_name: str) -> None:
    images = [image_bytes(100 + n, 80, seed=n, format="JPEG") for n in range(8)]
    expected = [image_patches(data, 784, 50_000, decoder(decoder_name))[0] for data in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: image_patches(data, 784, 50_000, decoder(decoder_name))[0], images * 5))
    assert all(np.array_equal(one, two) for one, two in zip(found, expected * 5, strict=True))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("decoder_name", DECODERS)
def test_a_good_header_with_a_broken_body_is_refused(decoder_name: str, format: str) -> None:
    data = image_bytes(200, 160, format=format)
    truncated = data[: len(data) // 2]
    assert image_size(truncated) == (200, 160)
    with pytest.raises(ImageError) as raised:
        image_patches(truncated, 3136, 2_560_000, decoder(decoder_name))
    assert raised.value.reason == "image_undecodable" and isinstance(raised.value, DataError)


def outcome(name: str, data: bytes, grid: tuple[int, int]) -> tuple[str, np.ndarray]:
    out = np.empty((grid[0] * grid[1], 588), np.float32)
    (error,) = decoder(name).patches([data], [grid], out)
    return str(error), out


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("decoder_name", DECODERS[::2])
def test_truncated_at_any_byte_is_refused_as_pillow_refuses(
    decoder_name: str, mode: str, options: dict[str, int]
) -> None:
    data = encoded(Image.open(io.BytesIO(image_bytes(40, 40))).convert(mode), "JPEG", **options)
    refused = 0
    for end in range(len(data) + 1):
        error, out = outcome(decoder_name, data[:end], (2, 2))
        expected_error, expected = outcome("pillow", data[:end], (2, 2))
        assert error == expected_error
        assert decoder_name != "native" or np.array_equal(out, expected)
        refused += error != "None"
    assert len(data) - 4 < refused <= len(data)


@pytest.mark.parametrize("decoder_name", DECODERS[::2])
def test_flipped_bits_are_judged_as_pillow_judges(decoder_name: str) -> None:
    rng = np.random.default_rng(0)
    files = [image_bytes(40, 40, format="JPEG"), variants()["jpeg RGB"], variants()["jpeg progressive"]]
    accepted = 0
    for n in range(600):
        data = bytearray(files[n % 3])
        for place in rng.integers(2, len(data), 1 + n % 4):
            data[place] ^= 1 << int(rng.integers(8))
        error, out = outcome(decoder_name, bytes(data), (2, 4))
        expected_error, expected = outcome("pillow", bytes(data), (2, 4))
        assert error == expected_error
        accepted += error == "None"
        assert decoder_name != "native" or np.array_equal(out, expected)
    assert 100 < accepted < 600


@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.floats(0.2, 1),
)
@settings(max_examples=400)
def test_damaged_files_raise_nothing_else(format: str, changes: list[tuple[float, int]], end: float) -> None:
    data = bytearray(image_bytes(24, 20, format=format))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        patches, grid = image_patches(bytes(data[: int(end * len(data))]), 784, 50_000)
    except ImageError:
        return
    assert patches.shape == (grid[1] * grid[2], 588)


def test_sizes_without_a_sensible_grid_are_refused() -> None:
    with pytest.raises(ImageError, match="7x90") as raised:
        image_patches(image_bytes(7, 90), 3136, 2_560_000)
    assert raised.value.reason == "image_too_small"


def test_without_dali_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # as if it were not installed
    with pytest.raises(InputError, match="data.decoder=dali needs the package nvidia-dali-cuda130") as raised:
        image_decoder("dali")
    assert "\n" not in str(raised.value)


def test_without_a_gpu_mixed_is_refused() -> None:
    with pytest.raises(InputError, match="data.decoder=dali_mixed needs a GPU"):
        pixel_decoder("dali_mixed", CPU, 0.65)


def test_a_decoder_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="data.decoder=dali_mixed: .* native, pillow, dali"):
        image_decoder("dali_mixed")
    with pytest.raises(InputError, match="data.decoder=dali: .* native, pillow, dali_mixed"):
        pixel_decoder("dali", CPU, 0.65)


@pytest.mark.parametrize("name", ["native", "pillow"])
def test_pixels_are_those_of_pillow(name: str) -> None:
    files = list(variants().values())
    images = [np.asarray(decode_image(data)) for data in files]
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    out = torch.empty(sum(image.size for image in images), dtype=torch.uint8)
    assert pixel_decoder(name, CPU, 0.65).pixels(files, sizes, out) == [None] * len(files)
    assert np.array_equal(out.numpy(), np.concatenate([image.reshape(-1) for image in images]))


def check_bad_images(decoder: PixelDecoder) -> None:
    """Those that Pillow refuses are refused and black, and the others are what they are."""
    image = Image.open(io.BytesIO(image_bytes(40, 30, seed=3)))
    whole, rest = encoded(image, "JPEG", quality=90), encoded(image, "PNG")
    files = [whole, whole[: len(whole) // 2], rest, b"", whole, rest[: len(rest) // 2]]
    sizes = [(30, 40), (30, 40), (30, 40), (10, 9), (31, 40), (30, 40)]
    out = torch.full((sum(3 * height * width for height, width in sizes),), 7, dtype=torch.uint8)
    errors = decoder.pixels(files, sizes, out)
    assert [error is None for error in errors] == [True, False, True, False, False, False]
    assert all(error.reason == "image_undecodable" for error in errors if error)
    assert "40x30 pixels, not 40x31" in str(errors[4])
    parts = out.split([3 * height * width for height, width in sizes])
    assert [bool(part.any()) for part in parts] == [error is None for error in errors]
    assert np.array_equal(parts[2].numpy().reshape(30, 40, 3), np.asarray(image))


@pytest.mark.parametrize("name", ["native", "pillow"])
def test_bad_images_are_black_pixels(name: str) -> None:
    check_bad_images(pixel_decoder(name, CPU, 0.65))


@NO_DALI
def test_dali_mixed_where_it_decodes_on_the_cpu() -> None:
    """All but what the GPU does: more than a batch, files for Pillow among them, a file that DALI refuses."""
    mixed = DaliMixedDecoder(CPU, 0.65)
    check_bad_images(mixed)
    files = [photograph("china", (40 + n, 50)) for n in range(40)] + list(variants().values())
    sizes = [image_size(data)[::-1] for data in files]
    damaged = bytearray(files[20])
    damaged[300:400] = bytes(100)
    files[20] = bytes(damaged)
    found, expected = torch.empty(2, sum(3 * height * width for height, width in sizes), dtype=torch.uint8)
    errors = mixed.pixels(files, sizes, found)
    assert [error is None for error in errors] == [
        error is None for error in pixel_decoder("pillow", CPU, 0.65).pixels(files, sizes, expected)
    ]
    counts = [3 * height * width for height, width in sizes]
    for n, (one, other) in enumerate(zip(found.split(counts), expected.split(counts), strict=True)):
        assert n == 20 or (one.int() - other.int()).abs().max() <= 1


@pytest.mark.gpu
@NO_DALI
def test_dali_mixed_on_the_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    files = [photograph("china", (400 + 3 * n, 500)) for n in range(40)] + list(variants().values())
    sizes = [image_size(data)[::-1] for data in files]
    counts = [3 * height * width for height, width in sizes]
    expected = torch.empty(sum(counts), dtype=torch.uint8)
    assert pixel_decoder("native", CPU, 0.65).pixels(files, sizes, expected) == [None] * len(files)
    for load in (0.0, 0.65, 1.0):
        found = torch.empty(sum(counts), dtype=torch.uint8, device=device)
        assert pixel_decoder("dali_mixed", device, load).pixels(files, sizes, found) == [None] * len(files)
        for one, other in zip(found.cpu().split(counts), expected.split(counts), strict=True):
            difference = (one.int() - other.int()).abs().float()
            assert difference.mean() < 0.5 and (difference > 4).float().mean() < 5e-3


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(InputError, match="native, pillow, dali"):
        image_decoder("opencv")
