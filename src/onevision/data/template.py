"""The chat template (Qwen's ChatML): a record to token ids, with the tokens that are learned marked.

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\n<|vision_start|><|image_pad|>…<|vision_end|>question<|im_end|>\\n
    <|im_start|>assistant\\nanswer<|im_end|>

The sample is cut where an answer begins and ends, each piece is tokenised once, and the pieces of the answers are the
targets. So the ids before an answer are exactly those that `encode_prompt` gives when the model is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onevision.corpus.record import Message, Record
from onevision.data.tokenizer import Tokenizer
from onevision.fingerprint import value_digest

DEFAULT_SYSTEM = "You are a helpful assistant."
TURN_START = "<|im_start|>{role}\n"
TURN_END = "<|im_end|>"
TURN_SEPARATOR = "\n"  # between turns; none after the last
TEMPLATE_FINGERPRINT = value_digest(
    ["chatml", 1, DEFAULT_SYSTEM, TURN_START, TURN_END, TURN_SEPARATOR, "<|vision_start|><|image_pad|>*n<|vision_end|>"]
)


@dataclass(frozen=True)
class EncodedSample:
    """A sample of L tokens: `ids` int64 [L]; `target` bool [L], true on every answer's tokens and its <|im_end|>."""

    ids: np.ndarray
    target: np.ndarray


def encode(record: Record, tokenizer: Tokenizer, image_tokens: Sequence[int]) -> EncodedSample:
    """Token ids of a record whose i-th image takes `image_tokens[i]` image pads.

    Raises:
        ValueError: `image_tokens` has another length than the record has images.
    """
    parts = _encoded(_pieces(record.messages), tokenizer, image_tokens)
    target = np.concatenate([np.full(len(ids), is_target) for ids, is_target in parts])
    return EncodedSample(np.concatenate([ids for ids, _ in parts]), target)


def encode_prompt(messages: Sequence[Message], tokenizer: Tokenizer, image_tokens: Sequence[int]) -> np.ndarray:
    """Token ids int64 [L] of the messages before an answer, ending where the answer begins.

    Raises:
        ValueError: `image_tokens` has another length than the messages have images.
    """
    pieces = [*_pieces(messages), (TURN_SEPARATOR + TURN_START.format(role="assistant"), False)]
    return np.concatenate([ids for ids, _ in _encoded(pieces, tokenizer, image_tokens)])


def text_token_counts(records: Sequence[Record], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each encoded record without its image pads."""
    cut = [list(_pieces(record.messages)) for record in records]
    counts = iter(tokenizer.counts([text for pieces in cut for text, _ in pieces if text is not None]))
    # An image without its pads still has its begin and its end.
    return [sum(2 if text is None else next(counts) for text, _ in pieces) for pieces in cut]


def _pieces(messages: Sequence[Message]) -> Iterator[tuple[str | None, bool]]:
    """The sample as (text, is it a target); an image is (None, False)."""
    text = ""
    if messages[0].role != "system":
        text = TURN_START.format(role="system") + DEFAULT_SYSTEM + TURN_END + TURN_SEPARATOR
    for number, message in enumerate(messages):
        text += (TURN_SEPARATOR if number else "") + TURN_START.format(role=message.role)
        if message.role == "assistant":
            yield text, False
            yield message.text + TURN_END, True
            text = ""
            continue
        for part in message.content:
            if part.type == "image":
                yield text, False
                yield None, False
                text = ""
            else:
                text += part.text
        text += TURN_END
    yield text, False


def _encoded(
    pieces: Iterable[tuple[str | None, bool]], tokenizer: Tokenizer, image_tokens: Sequence[int]
) -> list[tuple[np.ndarray, bool]]:
    parts = []
    images = 0
    for text, is_target in pieces:
        if text == "":  # between two images, or after the last answer
            continue
        if text is not None:
            ids = np.array(tokenizer.encode(text), dtype=np.int64)
        else:
            pads = image_tokens[images] if images < len(image_tokens) else 0
            ids = np.full(pads + 2, tokenizer.image_pad, dtype=np.int64)
            ids[0], ids[-1] = tokenizer.vision_start, tokenizer.vision_end
            images += 1
        parts.append((ids, is_target))
    if images != len(image_tokens):
        raise ValueError(f"the messages hold {images} images, image_tokens has {len(image_tokens)} counts")
    return parts
