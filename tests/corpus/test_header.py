"""Headers read at speed are those that Pillow reads, of whole, odd and damaged files."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from onevision.corpus import header
from onevision.corpus.header import read_header
from onevision.data.decode import image_patches
from onevision.data.image import ImageError, ImageHeader, image_header
from tests.fixtures import image_bytes


def picture(width: int = 61, height: int = 34) -> Image.Image:
    return Image.open(io.BytesIO(image_bytes(width, height)))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


@cache
def odd_files() -> dict[str, bytes]:
    base = picture()
    jpeg = saved(base, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = saved(picture(16, 12), "JPEG")
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a picture")
    files = {
        "jpeg": jpeg,
        "progressive": saved(base, "JPEG", progressive=True),
        "grey": saved(base.convert("L"), "JPEG"),
        "cmyk": saved(base.convert("CMYK"), "JPEG"),
        "4:4:4, optimised": saved(base, "JPEG", subsampling=0, optimize=True, quality=95),
        "restarts": saved(base, "JPEG", restart_marker_blocks=2),
        "comment": saved(base, "JPEG", comment=b"hello"),
        "icc": saved(base, "JPEG", icc_profile=b"profile" * 30),
        "orientation": saved(base, "JPEG", exif=exif),
        "thumbnail": with_segment(jpeg, 0xE1, b"Exif\0\0" + thumbnail),
        "thumbnail in another segment": with_segment(jpeg, 0xE5, thumbnail),
        "photoshop": with_segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM"),
        "adobe": with_segment(jpeg, 0xEE, b"Adobe\0\x64\0\0\0\0\1"),
        "short adobe": with_segment(jpeg, 0xEE, b"Adobe"),
        "short jfif": with_segment(jpeg, 0xE0, b"JFIF\0"),
        "short icc": with_segment(jpeg, 0xE2, b"ICC_PROFILE\0"),
        "bad quantization": with_segment(jpeg, 0xDB, b"\0" * 60),
        "two frames": with_segment(jpeg, 0xC0, bytes([8, 0, 20, 0, 30, 1, 1, 0x11, 0])),
        "12 bits": with_segment(jpeg, 0xC0, bytes([12, 0, 20, 0, 30, 1, 1, 0x11, 0])),
        "padded marker": jpeg[:2] + b"\xff\xff" + jpeg[2:],
        "mpo": saved(base, "MPO", save_all=True, append_images=[picture(20, 20)]),
        "huge": jpeg.replace((34).to_bytes(2, "big") + (61).to_bytes(2, "big"), b"\xff\xf0\xff\xf0"),
        "png": saved(base, "PNG"),
        "png text": saved(base, "PNG", pnginfo=text),
        "png dpi": saved(base, "PNG", dpi=(72, 72)),
        "png exif": saved(base, "PNG", exif=exif),
        "apng": saved(base, "PNG", save_all=True, append_images=[picture().rotate(90)]),
        "gif": saved(base, "GIF", save_all=True, append_images=[picture(80, 90)]),
        "webp": saved(base, "WEBP"),
        "webp lossless": saved(base, "WEBP", lossless=True),
        "webp moving": saved(base, "WEBP", save_all=True, append_images=[picture().rotate(9)]),
        "bmp": saved(base, "BMP"),
        "tiff": saved(base, "TIFF"),
        "ppm": saved(base, "PPM"),
        "ico": saved(base, "ICO"),
        "nothing": b"",
    }
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        files[f"png {mode}"] = saved(base.convert(mode), "PNG")
    palette = base.quantize(8)
    palette.info["transparency"] = 1
    files["png palette alpha"] = saved(palette, "PNG")
    return files


def answer(call: object, data: bytes) -> ImageHeader | str:
    try:
        found = call(data)  # type: ignore[operator]
    except ImageError as error:
        return str(error)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", odd_files())
def test_odd_files_are_read_as_pillow_reads_them(name: str) -> None:
    data = odd_files()[name]
    found = answer(read_header, data)
    assert found == answer(image_header, data)
    if isinstance(found, ImageHeader) and name != "two frames":  # which cannot be decoded
        grid = image_patches(data, 784, 10_000_000)[1]  # and so does what training decodes
        rounded = (round(found.height / 28) * 2, round(found.width / 28) * 2)
        assert grid == (1, *(max(2, side) for side in rounded))


@given(
    name=st.sampled_from(sorted(odd_files())),
    changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4),
    end=st.none() | st.integers(0, 900),
)
@settings(max_examples=500)
def test_damaged_files_are_read_as_pillow_reads_them(
    name: str, changes: list[tuple[int, int]], end: int | None
) -> None:
    data = bytearray(odd_files()[name])
    for place, value in changes:
        if place < len(data):
            data[place] = value
    assert answer(read_header, bytes(data[:end])) == answer(image_header, bytes(data[:end]))


@pytest.mark.parametrize(
    "name", ["jpeg", "progressive", "cmyk", "icc", "adobe", "comment", "restarts", "png", "png dpi"]
)
def test_usual_files_do_not_need_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(header, "image_header")
    data = odd_files()[name]
    found, pixels = read_header(data)
    assert (found.width, found.height) == (61, 34)
    blank = bytes(data[:pixels]) + bytes(len(data) - pixels)  # where the pixels begin nothing of the header is left
    assert read_header(blank) == (found, pixels)


def test_every_size_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 300, (40, 2)).tolist():
        for format in ("JPEG", "PNG"):
            data = saved(Image.new("RGB", (width, height)), format)
            assert answer(read_header, data) == ImageHeader(width, height, "jpg" if format == "JPEG" else "png")
