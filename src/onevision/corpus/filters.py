"""Which samples are left out although they could be read: the published filters of machine-written captions.

    undecodable   always by the header, and by decoding with `data.verify_images`             image_undecodable
    black image   all values zero once decoded; decoded are images so small for their size
                  that they may be black, and with `data.verify_images` all                   image_black
    refusal       an answer that begins with "I'm sorry", "I cannot" and the like              refusal
    repetition    eight times the same word (in Chinese: phrase) in a row in an answer         repeated_words
    length        a caption of fewer than `data.min_caption` or more than `data.max_caption`
                  characters; conversations may be of any length                              caption_length

All but the first follow `data.filters`: "auto" is "all" for the formats of captions (parquet, webdataset), "none" for
records and llava-json, whose short answers and refusals are meant to be learned.
"""

from __future__ import annotations

import re

from PIL import Image

from onevision.corpus.formats.conversation import CAPTION
from onevision.corpus.record import Record, Reject
from onevision.data.image import ImageHeader, decode_image
from onevision.recipe import DataRecipe

REFUSALS = (
    "i'm sorry", "i am sorry", "sorry, ", "i apologize", "i cannot", "i can't", "i can not", "i'm unable",
    "i am unable", "i'm not able", "i am not able", "unfortunately, i", "as an ai",
    "抱歉", "很抱歉", "非常抱歉", "对不起", "不好意思", "我无法", "我不能", "无法提供", "无法识别",
    "作为一个人工智能", "作为人工智能", "作为一个ai", "作为ai",
)  # fmt: skip
REPEATS = 8
CAPTION_FORMATS = ("parquet", "webdataset")
PIXELS_A_BYTE = 16  # no photograph is compressed as much; a black image is more so
_PHRASES = re.compile(r"([\u3400-\u9fff，。、！？；：]{1,20}?)\1{" + str(REPEATS - 1) + "}")


def filtered(data: DataRecipe) -> bool:
    """Whether the filters of captions apply."""
    return data.filters == "all" or (data.filters == "auto" and data.format in CAPTION_FORMATS)


def check_texts(record: Record, data: DataRecipe) -> None:
    """Refuse what is not worth learning.

    Raises:
        Reject: refusal, repeated_words, caption_length.
    """
    for message in record.messages:
        if message.role != "assistant":
            continue
        text = message.text
        start = text[:40].lstrip().lower().replace("’", "'")
        if start.startswith(REFUSALS):
            raise Reject("refusal", f"an answer begins with {text[:40]!r}")
        if phrase := _repeated(text):
            raise Reject("repeated_words", f"{phrase[:40]!r} comes {REPEATS} times in a row")
        if (record.is_caption or record.category == CAPTION) and not data.min_caption <= len(text) <= data.max_caption:
            wanted = f"{data.min_caption} to {data.max_caption}"
            raise Reject("caption_length", f"the caption has {len(text)} characters, not {wanted}")


def check_pixels(image: bytes, header: ImageHeader, pixels: int, data: DataRecipe) -> None:
    """Decode the image where the recipe asks for it; `pixels` is the byte where its pixels begin.

    Raises:
        Reject: image_black.
        ImageError: image_undecodable.
    """
    black_counts = filtered(data)
    small = (len(image) - pixels) * PIXELS_A_BYTE < header.width * header.height
    if not data.verify_images and not (black_counts and small):
        return
    decoded = decode_image(image)
    if black_counts and _is_black(decoded):
        raise Reject("image_black", f"all {header.width}x{header.height} pixels are black")


def _is_black(image: Image.Image) -> bool:
    return image.getbbox() is None  # no value differs from zero


def _repeated(text: str) -> str:
    run, last = 0, ""
    for word in text.split():
        run = run + 1 if word == last else 1
        if run == REPEATS:
            return word
        last = word
    found = None if text.isascii() else _PHRASES.search(text)
    return found[1] if found else ""
