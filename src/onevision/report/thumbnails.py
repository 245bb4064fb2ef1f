"""Images and texts of samples, small enough for a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from onevision.data.image import ImageError, decode_image, image_header

INLINE_BYTES = 24 << 10  # a larger image is shown as a smaller copy
INLINE_SIDE = 280  # pixels
BROWSER_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "gif": "image/gif"}
TEXT_LIMIT = 280  # characters


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, and its size in pixels in the corpus."""

    uri: str
    width: int
    height: int


def picture(data: bytes) -> Picture | None:
    """An image for an HTML page, the file as it is where a browser shows it; None when it cannot be decoded."""
    try:
        header = image_header(data)
        kind = BROWSER_TYPES.get(header.suffix)
        if kind is None or len(data) > INLINE_BYTES:
            image = decode_image(data)
            image.thumbnail((INLINE_SIDE, INLINE_SIDE))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=85)
            data, kind = buffer.getvalue(), "image/jpeg"
    except ImageError:
        return None
    return Picture(f"data:{kind};base64,{base64.b64encode(data).decode()}", header.width, header.height)


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    """A text of at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
