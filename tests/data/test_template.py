from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onevision.corpus.record import STRUCTURE_TOKENS, Message, Part, Record, parse_record, record_fields
from onevision.data.template import encode, encode_prompt, text_token_counts
from onevision.data.tokenizer import Tokenizer
from tests.fixtures import tiny_tokenizer

texts = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab \n\t,.:1图<|>")), min_size=1, max_size=30
).filter(lambda text: bool(text.strip()) and not any(token in text for token in STRUCTURE_TOKENS))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def record_of(messages: Sequence[Message], images: int = 0) -> Record:
    return Record("r", (b"",) * images, tuple(messages), "c", "en", "s", "l")


@st.composite
def records(draw: st.DrawFn) -> tuple[Record, list[int]]:
    messages = [Message("system", (Part("text", draw(texts)),))] if draw(st.booleans()) else []
    images = 0
    for _ in range(draw(st.integers(1, 3))):
        parts = draw(st.lists(st.one_of(texts, st.none()), min_size=1, max_size=4))
        images += parts.count(None)
        question = tuple(Part("image") if part is None else Part("text", part) for part in parts)
        messages += [Message("user", question), Message("assistant", (Part("text", draw(texts)),))]
    record = record_of(messages, images)
    assume(not any(token in message.text for message in messages for token in STRUCTURE_TOKENS))
    return record, draw(st.lists(st.integers(1, 9), min_size=images, max_size=images))


def rendered(record: Record, image_tokens: Sequence[int]) -> str:
    """The whole sample as one text, written down independently."""
    counts = iter(image_tokens)
    turns = []
    if record.messages[0].role != "system":
        turns.append("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    for message in record.messages:
        body = "".join(
            part.text if part.type == "text" else "<|vision_start|>" + "<|image_pad|>" * next(counts) + "<|vision_end|>"
            for part in message.content
        )
        turns.append(f"<|im_start|>{message.role}\n{body}<|im_end|>\n")
    return "".join(turns).removesuffix("\n")


def runs(mask: np.ndarray) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [slice(start, end) for start, end in edges.reshape(-1, 2)]


@given(sample=records())
def test_targets_are_exactly_the_answers(tokenizer: Tokenizer, sample: tuple[Record, list[int]]) -> None:
    record, image_tokens = sample
    encoded = encode(record, tokenizer, image_tokens)
    answers = [message.text + "<|im_end|>" for message in record.messages if message.role == "assistant"]
    assert [tokenizer.decode(encoded.ids[run]) for run in runs(encoded.target)] == answers
    assert encoded.ids.dtype == np.int64 and encoded.target.dtype == np.bool_
    assert encoded.ids.shape == encoded.target.shape


@given(sample=records())
def test_the_sample_decodes_to_the_template(tokenizer: Tokenizer, sample: tuple[Record, list[int]]) -> None:
    record, image_tokens = sample
    ids = encode(record, tokenizer, image_tokens).ids
    assert tokenizer.decode(ids) == rendered(record, image_tokens)
    assert np.count_nonzero(ids == tokenizer.image_pad) == sum(image_tokens)
    assert len(ids) == text_token_counts([record], tokenizer)[0] + sum(image_tokens)


@given(sample=records())
def test_ids_are_those_of_the_text_tokenised_in_one_piece(
    tokenizer: Tokenizer, sample: tuple[Record, list[int]]
) -> None:
    # Only an answer that begins with blank characters could be joined with the newline before it.
    record, image_tokens = sample
    assume(not any(message.text[0].isspace() for message in record.messages if message.role == "assistant"))
    assert encode(record, tokenizer, image_tokens).ids.tolist() == tokenizer.encode(rendered(record, image_tokens))


@given(sample=records())
@settings(max_examples=50)
def test_a_prompt_is_what_stands_before_the_answer(tokenizer: Tokenizer, sample: tuple[Record, list[int]]) -> None:
    record, image_tokens = sample
    encoded = encode(record, tokenizer, image_tokens)
    answers = [number for number, message in enumerate(record.messages) if message.role == "assistant"]
    for number, run in zip(answers, runs(encoded.target), strict=True):
        before = record.messages[:number]
        images = sum(part.type == "image" for message in before for part in message.content)
        prompt = encode_prompt(before, tokenizer, image_tokens[:images])
        assert prompt.tolist() == encoded.ids[: run.start].tolist()
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_one_sample_to_the_letter(tokenizer: Tokenizer) -> None:
    record = record_of(
        [
            Message("user", (Part("image"), Part("text", "What?"))),
            Message("assistant", (Part("text", "A dot."),)),
            Message("user", (Part("text", "And?"),)),
            Message("assistant", (Part("text", "No"), Part("text", "thing"))),
        ],
        images=1,
    )
    encoded = encode(record, tokenizer, [2])
    assert tokenizer.decode(encoded.ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\nA dot.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\nNothing<|im_end|>"
    )
    assert tokenizer.decode(encoded.ids[encoded.target]) == "A dot.<|im_end|>Nothing<|im_end|>"
    assert not encoded.target[: len(encode_prompt(record.messages[:1], tokenizer, [2]))].any()
    assert encoded.target[-1]


def test_a_system_message_takes_the_place_of_the_default(tokenizer: Tokenizer) -> None:
    messages = [
        Message("system", (Part("text", "Be brief."),)),
        Message("user", (Part("text", "Hi"),)),
        Message("assistant", (Part("text", "Ho"),)),
    ]
    text = tokenizer.decode(encode(record_of(messages), tokenizer, []).ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user") and "helpful" not in text


@pytest.mark.parametrize("counts", [[], [1, 2]])
def test_image_counts_must_match(tokenizer: Tokenizer, counts: list[int]) -> None:
    messages = [Message("user", (Part("image"),)), Message("assistant", (Part("text", "Ho"),))]
    with pytest.raises(ValueError, match=f"hold 1 images, image_tokens has {len(counts)}"):
        encode(record_of(messages, 1), tokenizer, counts)


@given(sample=records())
def test_records_survive_their_json(sample: tuple[Record, list[int]]) -> None:
    record, _ = sample
    assert parse_record(record_fields(record), record.images) == record
