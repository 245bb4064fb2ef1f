"""Images that are damaged, of odd kinds, or lie about their size: measured or refused, decoded or refused, by every
decoder alike, in bounded memory and time."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from onevision.corpus.filters import check_pixels
from onevision.corpus.header import read_header
from onevision.data.decode import ImageDecoder, image_decoder
from onevision.data.image import PATCH_VALUES, ImageError, image_header, patch_grid
from onevision.machine import version
from onevision.recipe import DataRecipe
from tests.fixtures import image_bytes
from tests.fuzz.harness import Box, campaign
from tests.fuzz.strategies import damaged, damages

Fuzz = Callable[[Callable[..., None]], Counter[str]]
LIMITS = (28 * 28, 28 * 28 * 9)  # pixels after resizing
DATA = DataRecipe(filters="none", verify_images=True)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, pixels: bytes, *chunks: bytes, depth: int = 8, colour: int = 2, interlace: int = 0
) -> bytes:
    """A PNG file of this header, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    )


@cache
def files() -> dict[str, bytes]:
    """Files of many kinds by what they are."""
    base = Image.open(io.BytesIO(image_bytes(61, 34)))
    other = Image.open(io.BytesIO(image_bytes(20, 30)))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 300
    jpeg = saved(base, "JPEG")
    zeros = zlib.compress(bytes(1 << 24), 9)
    found = {
        "jpeg": jpeg,
        "progressive": saved(base, "JPEG", progressive=True),
        "grey": saved(base.convert("L"), "JPEG"),
        "cmyk": saved(base.convert("CMYK"), "JPEG"),
        "exif": saved(base, "JPEG", exif=exif),
        "restarts": saved(base, "JPEG", restart_marker_blocks=1),
        "mpo": saved(base, "MPO", save_all=True, append_images=[other]),
        "jpeg twice": jpeg + jpeg,
        "only head": jpeg[:300],
        "garbage in exif": jpeg[:2] + b"\xff\xe1\x00\x20Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\xff" * 14 + jpeg[2:],
        "png": saved(base, "PNG"),
        "png 16": saved(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)), "PNG"),
        "apng": saved(base, "PNG", save_all=True, append_images=[other.resize(base.size)]),
        "png exif": saved(base, "PNG", exif=exif),
        "gif": saved(base, "GIF"),
        "gif moving": saved(base, "GIF", save_all=True, append_images=[other, base.rotate(90)]),
        "webp": saved(base, "WEBP"),
        "webp lossless": saved(base.convert("RGBA"), "WEBP", lossless=True),
        "webp moving": saved(base, "WEBP", save_all=True, append_images=[base.rotate(9)]),
        "bmp": saved(base, "BMP"),
        "tiff": saved(base, "TIFF"),
        "tiff lzw": saved(base, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": saved(base, "TIFF", compression="jpeg"),
        "tiff deflate": saved(base, "TIFF", compression="tiff_adobe_deflate"),
        "tiff float": saved(base.convert("F"), "TIFF"),
        "tiff cmyk": saved(base.convert("CMYK"), "TIFF"),
        "tiff g4": saved(base.convert("1"), "TIFF", compression="group4"),
        "ico": saved(base, "ICO"),
        "ppm": saved(base, "PPM"),
        "tga": saved(base, "TGA"),
        "pdf": saved(base, "PDF"),
        "eps": saved(base, "EPS"),
        "icns": saved(base.resize((64, 64)), "ICNS"),
        "dds": saved(base, "DDS"),
        "sgi": saved(base, "SGI"),
        "pcx": saved(base, "PCX"),
        "jpeg 2000": saved(base, "JPEG2000"),
        "avif": saved(base, "AVIF") if "AVIF" in Image.SAVE else b"\0\0\0\x1cftypavif",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9e9' height='9'><image href='file:///etc/passwd'/></svg>",
        "psd": b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x22\0\0\0\x3d\0\x08\0\3" + bytes(400),
        "html": b"<html><script>",
        "zip": b"PK\3\4" + bytes(40),
        "elf": b"\x7fELF" + bytes(60),
        "nothing": b"",
        "zeros": bytes(100),
        "text": b"not an image",
        "bomb": png(60_000, 60_000, zeros),
        "bomb just allowed": png(9_000, 9_000, zeros),
        "bomb of one colour": png(3_000, 3_000, zeros, depth=1, colour=0),
        "zero": png(0, 10, zeros),
        "huge": png(2**31 - 1, 2**31 - 1, b""),
        "thin": png(65_535, 1, zeros),
        "tall": png(40, 8_001, zeros),
        "text bomb": png(30, 30, zeros, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))),
        "profile bomb": png(30, 30, zeros, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))),
        "short": png(30, 30, zlib.compress(b"\0")),
        "interlaced": png(33, 35, zlib.compress(bytes(4000)), interlace=1),
        "palette none": png(30, 30, zeros, colour=3),
        "bad chunk": png(30, 30, zeros, chunk(b"tRNS", b"\0" * 300)),
        "jpeg 65535": jpeg.replace(struct.pack(">HH", 34, 61), b"\xff\xff\xff\xff"),
        "jpeg 0": jpeg.replace(struct.pack(">HH", 34, 61), b"\0\0\0\0"),
        "jpeg 65500 x 40": jpeg.replace(struct.pack(">HH", 34, 61), struct.pack(">HH", 40, 7_900)),
        "gif huge": b"GIF89a\xff\xff\xff\xff\xf0\0\0" + bytes(48) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;",
        "bmp huge": b"BM"
        + struct.pack("<IHHI IiiHHIIiiII", 99, 0, 0, 54, 40, 30_000, -30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "bmp rle": b"BM"
        + struct.pack("<IHHI IiiHHIIiiII", 99, 0, 0, 1078, 40, 40, 40, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(1024)
        + b"\0\2\xff\xff" * 30
        + b"\0\1",
        "tiff loop": b"II*\0\x08\0\0\0\1\0\0\1\4\0\1\0\0\0\x10\0\0\0\x08\0\0\0",
        "webp head": b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff",
    }
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        found[f"png {mode}"] = saved(base.convert(mode), "PNG")
    return found


@cache
def decoders() -> dict[str, ImageDecoder]:
    """All decoders that run on a CPU, used once, so that what they compile and make is there; DALI's where it is
    installed, which tests/data/decode say where it is not."""
    names = ("native", "pillow", "dali") if version("nvidia-dali-cuda130") else ("native", "pillow")
    made = {name: image_decoder(name) for name in names}
    for decoder in made.values():
        decoder.patches([files()["jpeg"], files()["png"]], [(4, 4)] * 2, np.empty((32, PATCH_VALUES), np.float32))
    return made


def read(data: bytes) -> dict[str, np.ndarray | None]:
    """Measure an image and decode it by each decoder: its patches, or None where they refuse it.

    Raises:
        ImageError: its header is refused.
    """
    header, pixels = read_header(data)
    grid = patch_grid(header.width, header.height, *LIMITS)
    found: dict[str, np.ndarray | None] = {}
    for name, decoder in decoders().items():
        out = np.full((grid[0] * grid[1], PATCH_VALUES), np.nan, np.float32)
        (error,) = decoder.patches([data], [grid], out)
        assert np.isfinite(out).all() and (error is None or not out.any())
        found[name] = None if error else out
    try:
        check_pixels(data, header, pixels, DATA)  # as an import does with data.verify_images
    except ImageError:
        assert found["pillow"] is None
    else:
        assert found["pillow"] is not None
    return found


def measured_alike(data: bytes) -> None:
    """The fast header reader and Pillow say the same."""

    def said(call: Callable[[], object]) -> object:
        try:
            return call()
        except ImageError as error:
            return str(error)

    assert said(lambda: read_header(data)[0]) == said(lambda: image_header(data))


@campaign(260, lambda box: decoders(), name=st.sampled_from(sorted(files())), changes=st.just([]) | damages)
def images(box: Box, name: str, changes: list[tuple[str, float, object]]) -> None:
    """A file of some kind, as it is or damaged."""
    data = damaged(files()[name], changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF
        found, error = box.attempt(lambda: read(data), errors=(ImageError,))
    if error is None:
        assert {name for name, patches in found.items() if patches is None} in (set(), set(found)), (
            "decoders do not agree"
        )
        if found["native"] is not None:
            assert np.array_equal(found["native"], found["pillow"])
        box.notes["decoded" if found["native"] is not None else "measured, not decoded"] += 1
    measured_alike(data)


def test_images(fuzz: Fuzz) -> None:
    counts = fuzz(images)
    assert counts["decoded"] and counts["ImageError"]
