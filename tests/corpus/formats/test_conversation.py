from __future__ import annotations

from typing import Any

import pytest

from onevision.corpus.formats.conversation import (
    CAPTION_PROMPTS,
    caption_record,
    conversation_record,
    language_of,
    turns_of,
)
from onevision.corpus.record import Reject
from tests.corpus.formats.sources import texts

IMAGE = b"image"
SAME = [("user", "<>Q"), ("assistant", "A")]


def read(turns: list[Any], images: int = 1, **fields: Any) -> list[tuple[str, str]]:
    return texts(conversation_record(fields, turns, (IMAGE,) * images, "place", "set"))


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}],
        [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],  # no placeholder: before the question
        [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "A"}],
        [{"from": None, "value": None, "role": "user", "content": "<image>\nQ"},
         {"from": "gpt", "value": "A", "role": None, "content": None}],
        [{"user": "Q", "assistant": "A"}],
        [{"user": "<image>\nQ", "assistant": "A", "source": "x"}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
         {"role": "assistant", "content": [{"type": "text", "text": "A"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, "Q"]},
         {"role": "assistant", "content": {"type": "text", "text": "A"}}],
        [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}, {"from": None, "value": None}],
    ],
)  # fmt: skip
def test_ways_to_write_the_same(turns: list[Any]) -> None:
    assert read(turns) == SAME


def test_placeholders_stand_where_they_are_written() -> None:
    turns = [
        {"from": "system", "value": "Be short."},
        {"from": "human", "value": "Compare <image> with <image>\nand\n<image>"},
        {"from": "gpt", "value": "Same."},
        {"from": "human", "value": "And <image>?\n"},
        {"from": "gpt", "value": "No."},
    ]
    assert read(turns, images=4) == [
        ("system", "Be short."),
        ("user", "Compare <> with <>and<>"),
        ("assistant", "Same."),
        ("user", "And <>?\n"),
        ("assistant", "No."),
    ]


def test_a_system_text_beside_the_turns_is_what_they_begin_with() -> None:
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    assert read(turns, system="Be short.") == [("system", "Be short."), *SAME]
    assert read(turns, system=" ") == read(turns, system=None) == SAME
    own = {"from": "system", "value": "Be long."}
    assert read([own, *turns], system="Be short.") == [("system", "Be long."), *SAME]


def test_text_alone() -> None:
    assert read([{"user": "Q", "assistant": "A"}, {"user": "R", "assistant": "B"}], images=0) == [
        ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B"),
    ]  # fmt: skip


def test_names_of_the_row_win() -> None:
    turns = [{"user": "问题是什么", "assistant": "答案"}]
    plain = conversation_record({}, turns, (), "place", "set")
    assert (plain.id, plain.source, plain.language, plain.category, plain.license) == (
        "place", "set", "zh", "instruct", "unknown",
    )  # fmt: skip
    fields = {"id": 7, "data_source": "d", "language": "fr", "category": "ocr", "license": "MIT"}
    named = conversation_record(fields, turns, (), "place", "set")
    assert named.id.startswith("7#")
    assert (named.source, named.language, named.category, named.license) == ("d", "fr", "ocr", "MIT")


def test_conversations_about_one_image_are_told_apart_and_the_same_one_is_not() -> None:
    def record_id(question: str, image: bytes) -> str:
        turns = [{"user": question, "assistant": "A"}]
        return conversation_record({"id": "000000033471"}, turns, (image,), "place", "set").id

    ids = [record_id("Q", b"1"), record_id("R", b"1"), record_id("Q", b"2")]
    assert len(set(ids)) == 3
    assert all(name.startswith("000000033471#") and len(name) == 21 for name in ids)
    assert record_id("Q", b"1") == ids[0]


@pytest.mark.parametrize(
    "turns,reason",
    [
        ([{"from": "human", "value": "<image><image>Q"}, {"from": "gpt", "value": "A"}], "image_count"),
        ([{"user": "Q", "assistant": None}], "empty_answer"),
        ([{"user": None, "assistant": "A"}], None),  # the image is the question
        ([{"from": "human", "value": None}], "bad_field"),
        ([{"value": "Q"}], "role_order"),
        (["Q"], "bad_field"),
        ([], "no_messages"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "bad_field"),
        ([{"user": "<|im_end|>", "assistant": "A"}], "special_token_in_text"),
    ],
)
def test_turns_that_cannot_be_used(turns: list[Any], reason: str | None) -> None:
    if reason is None:
        assert read(turns) == [("user", "<>"), ("assistant", "A")]
        return
    with pytest.raises(Reject) as raised:
        read(turns)
    assert raised.value.reason == reason


def test_captions() -> None:
    def caption(prompt: Any, text: Any = " 一张图片。\n", language: str = "") -> list[tuple[str, str]]:
        return texts(caption_record({}, text, prompt, IMAGE, "place", "set", language))

    assert caption(None) == [("user", "<>" + CAPTION_PROMPTS["zh"]), ("assistant", "一张图片。")]
    assert caption("", language="en") == [("user", "<>" + CAPTION_PROMPTS["en"]), ("assistant", "一张图片。")]
    assert caption("<image>", language="fr")[0] == ("user", "<>" + CAPTION_PROMPTS["en"])
    assert caption("What is it?")[0] == ("user", "<>What is it?")
    assert caption("What is <image>?")[0] == ("user", "What is <>?")
    for text, reason in ((None, "no_caption"), (["x"], "no_caption"), ("  ", "empty_answer")):
        with pytest.raises(Reject) as raised:
            caption(None, text)
        assert raised.value.reason == reason


def test_keys_of_turns() -> None:
    assert turns_of({"conversations": None, "messages": [1]}) == [1]
    assert turns_of({"text": "x"}) is None


@pytest.mark.parametrize("text,language", [("A red dot.", "en"), ("一个红点", "zh"), ("", "en"), ("OCR 识别", "zh")])
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language
