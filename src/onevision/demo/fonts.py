"""The DejaVu fonts that matplotlib ships."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font file of matplotlib at `size` pixels, laid out by FreeType alone: the same on every machine."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
