"""Image headers at the speed of an import: the usual JPEG and PNG files are read here, all others by Pillow.

Only files in whose header every piece is of a kind that cannot mislead are read here, so that the answer is always that
of `onevision.data.image.image_header`. What EXIF says of the orientation counts nowhere; thumbnails in it are not met.
"""

from __future__ import annotations

import zlib
from struct import unpack_from

from PIL import Image

from onevision.data.image import ImageHeader, image_header

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {
    (depth, kind)
    for kind, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
}
# Chunks before the pixels that cannot be wrong in themselves, and their bytes (-1: any).
_PNG_CHUNKS = {b"PLTE": -1, b"gAMA": 4, b"sRGB": 1, b"pHYs": 9, b"sBIT": -1, b"bKGD": -1, b"tIME": -1}
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_TABLES = (0xC4, 0xDD, 0xFE)  # Huffman tables, restart interval, comment
_QUANTIZATION, _SCAN = 0xDB, 0xDA


def read_header(data: bytes) -> tuple[ImageHeader, int]:
    """The header of an image file, and the byte where its pixels begin (0 where that is not known).

    Raises:
        ImageError: image_undecodable, as `image_header`.
    """
    found = None
    if data[:3] == b"\xff\xd8\xff":
        found = _jpeg(data)
    elif data[:8] == _PNG:
        found = _png(data)
    return found or (image_header(data), 0)


def _jpeg(data: bytes) -> tuple[ImageHeader, int] | None:
    width = height = 0
    place, end = 2, len(data)
    while place + 4 <= end and data[place] == 0xFF:
        marker = data[place + 1]
        size = data[place + 2] << 8 | data[place + 3]
        start, place = place + 4, place + 2 + size
        if size < 2 or place > end:
            return None
        if marker == _SCAN:
            return _checked(width, height, "jpg", place)
        if marker in _FRAMES:
            if width or size < 8:
                return None
            bits, height, width, layers = unpack_from(">BHHB", data, start)
            if bits != 8 or layers not in (1, 3, 4) or size != 8 + 3 * layers:
                return None
        elif marker == _QUANTIZATION:
            if not _whole_tables(data, start, place):
                return None
        elif marker not in _TABLES and not (0xE0 <= marker <= 0xEF and _plain(marker, data[start:place])):
            return None
    return None


def _whole_tables(data: bytes, start: int, end: int) -> bool:
    """Whether a segment of quantization tables holds whole ones."""
    while start < end:
        start += 65 if data[start] < 16 else 129
    return start == end


def _plain(marker: int, segment: bytes) -> bool:
    """Whether an application's segment says nothing that Pillow would have to understand."""
    if segment.startswith((b"Exif\0\0", b"MPF\0", b"FPXR\0", b"Photoshop 3.0\0")):
        return False
    shortest = {b"JFIF": 12, b"Adobe": 12, b"ICC_PROFILE\0": 14}
    return all(len(segment) >= size for name, size in shortest.items() if segment.startswith(name))


def _png(data: bytes) -> tuple[ImageHeader, int] | None:
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, depth, kind, _, filters, _ = unpack_from(">IIBBBBB", data, 16)
    place, size, chunk = 8, 13, b"IHDR"
    if (depth, kind) not in _PNG_KINDS or filters:
        return None
    while chunk != b"IDAT":
        end = place + 8 + size
        if end + 12 > len(data) or zlib.crc32(data[place + 4 : end]) != unpack_from(">I", data, end)[0]:
            return None
        place = end + 4
        size, chunk = unpack_from(">I4s", data, place)
        if chunk != b"IDAT" and (chunk not in _PNG_CHUNKS or _PNG_CHUNKS[chunk] not in (-1, size)):
            return None
    return _checked(width, height, "png", place + 8)


def _checked(width: int, height: int, suffix: str, pixels: int) -> tuple[ImageHeader, int] | None:
    """None for a size that Pillow refuses."""
    fits = 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0)
    return (ImageHeader(width, height, suffix), pixels) if fits else None
