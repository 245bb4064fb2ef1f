from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image

from onevision.corpus.filters import check_pixels, check_texts, filtered
from onevision.corpus.formats.conversation import caption_record
from onevision.corpus.header import read_header
from onevision.corpus.record import Message, Part, Record, Reject
from onevision.data.image import ImageError
from onevision.recipe import DataRecipe
from tests.fixtures import image_bytes

DATA = DataRecipe(format="parquet")


def caption(text: str, category: str = "caption") -> Record:
    messages = (Message("user", (Part("text", "I'm sorry?"),)), Message("assistant", (Part("text", text),)))
    return Record("x", (), messages, category, "en", "set", "")


def reason(record: Record) -> str:
    try:
        check_texts(record, DATA)
    except Reject as error:
        return error.reason
    return ""


LONG = " A red circle stands beside a blue square, and nothing is in between."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help." + LONG, "refusal"), ("  I’m Sorry" + LONG, "refusal"),
        ("I cannot describe" + LONG, "refusal"), ("As an AI model" + LONG, "refusal"),
        ("抱歉，我无法识别这张图片。" * 5, "refusal"), ("我无法查看图片内容。" * 6, "refusal"),
        ("He says: I'm sorry." + LONG, ""), ("A sign says 抱歉" + LONG, ""),
        ("red " * 8 + LONG, "repeated_words"), ("red " * 7 + LONG, ""), ("red\n" * 8 + LONG, "repeated_words"),
        ("天空很蓝，" * 8 + "图片里有什么？" * 2, "repeated_words"),
        ("天空很蓝，" * 7 + "图片里有什么？十个点。八条线。", ""),
        ("x" * 49, "caption_length"), ("x" * 50, ""), ("x" * 3500, ""), ("x" * 3501, "caption_length"),
    ],
)  # fmt: skip
def test_captions(text: str, expected: str) -> None:
    assert reason(caption(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("No.", "caption_length"), ("x" * 60, ""), ("x" * 3501, "caption_length")]
)
def test_a_caption_has_a_length_whatever_category_its_row_names(text: str, expected: str) -> None:
    record = caption_record({"category": "nature"}, text, None, image_bytes(40, 30), "a/1", "set")
    assert record.category == "nature" and reason(record) == expected


def test_only_captions_have_a_length() -> None:
    assert reason(caption("No.", "instruct")) == "" and reason(caption("red " * 9, "instruct")) == "repeated_words"


@pytest.mark.parametrize(
    ("format", "filters", "expected"),
    [("records", "auto", False), ("llava-json", "auto", False), ("parquet", "auto", True), ("webdataset", "auto", True),
     ("records", "all", True), ("parquet", "none", False)],
)  # fmt: skip
def test_when_filters_apply(format: str, filters: str, expected: bool) -> None:
    assert filtered(DataRecipe(format=format, filters=filters)) == expected


def black(format: str, size: tuple[int, int] = (300, 200), mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=format, **options)
    return buffer.getvalue()


def check(image: bytes, data: DataRecipe) -> str:
    try:
        check_pixels(image, *read_header(image), data)
    except (Reject, ImageError) as error:
        return error.reason
    return ""


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (2000, 1500)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_black_images(format: str, size: tuple[int, int]) -> None:
    image = black(format, size)
    assert check(image, replace(DATA, verify_images=True)) == "image_black"
    assert check(image, replace(DATA, verify_images=True, filters="none")) == ""
    if size != (56, 56):  # where the header is not most of the file
        assert check(image, DATA) == "image_black"


def test_black_photographs_are_found_without_decoding_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"quality": 30}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"comment": b"black"}):
        assert check(black("JPEG", (640, 480), **options), DATA) == "image_black"
    assert check(black("JPEG", (640, 480), "L"), DATA) == "image_black"
    monkeypatch.delattr("onevision.corpus.filters.decode_image")
    assert check(image_bytes(640, 480, format="JPEG"), DATA) == ""


def test_a_small_file_that_is_not_black_stays() -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (640, 480))
    image.putpixel((639, 479), (0, 0, 1))
    image.save(buffer, format="PNG")
    assert check(buffer.getvalue(), DATA) == ""


def test_broken_bodies_are_found_by_verifying() -> None:
    image = image_bytes(200, 160, format="JPEG")
    image = image[: len(image) // 2]
    assert check(image, DATA) == "" and check(image, replace(DATA, verify_images=True)) == "image_undecodable"
