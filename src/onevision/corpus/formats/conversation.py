"""From the ways in which conversations and captions are written to one record.

Turns are `{from, value}`, `{role, content}`, a mixture of both in which the other keys are null, or pairs
`{user, assistant}`; a content is a text or a list of parts. `<image>` in a text stands for the next image; where no
turn says where the images stand, they stand before the first question. A text under `system` beside the turns is what
they begin with, unless they begin with a system message of their own. The line end that LLaVA's layout puts between
`<image>` and the question belongs to the placeholder and is dropped with it: no line end stands there when a model is
asked.

The `id` of a conversation often names its image, as in LLaVA's own data, and all conversations about that image have
it. So a record's id is the one that is given, `#`, and a digest of messages and images: only the same conversation
about the same images is a duplicate.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import xxhash

from onevision.corpus.record import Record, Reject, parse_record, shown

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}
CAPTION = "caption"  # the category of captions
INSTRUCTION = "instruct"  # the category of conversations that name none
# What a caption answers where the data do not say.
CAPTION_PROMPTS = {"en": "Describe this image in detail.", "zh": "请详细描述这张图片。"}
TURNS = ("conversations", "messages", "conversation", "texts")  # keys that hold turns
_PLACEHOLDER = re.compile(r"<image>\n?|\n<image>$")
_HAN = re.compile(r"[\u3400-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]")


def turns_of(fields: dict[str, Any]) -> list[Any] | None:
    """The turns of a row under whichever key they stand, or None if it has none."""
    found = (fields.get(key) for key in TURNS)
    return next((turns for turns in found if isinstance(turns, list)), None)


def conversation_record(
    fields: dict[str, Any], turns: list[Any], images: tuple[bytes, ...], place: str, source: str, language: str = ""
) -> Record:
    """The record of a conversation. `place` is its id where `fields` have none, `source` and `language` likewise.

    Raises:
        Reject: the first thing found wrong.
    """
    if fields.get("video") or fields.get("videos"):
        raise Reject("video", "the conversation is about a video")
    messages = [message for turn in turns for message in _messages(turn)]
    system = fields.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    first = next((message for message in messages if message["role"] == "user"), None)
    placed = any(part["type"] == "image" for message in messages for part in message["content"])
    if images and first and not placed:
        first["content"] = [{"type": "image"}] * len(images) + first["content"]
    text = "".join(part.get("text", "") for message in messages for part in message["content"])
    names = _names(fields, place, source, language or language_of(text), INSTRUCTION)
    if names["id"] != place:
        names["id"] += f"#{_digest(messages, images)}"
    return parse_record({**names, "messages": messages}, images)


def caption_record(
    fields: dict[str, Any], caption: Any, prompt: Any, image: bytes, place: str, source: str, language: str = ""
) -> Record:
    """The record of an image and its caption; without a `prompt` it answers that of `CAPTION_PROMPTS`.

    Raises:
        Reject: the first thing found wrong.
    """
    if not isinstance(caption, str):
        raise Reject("no_caption", f"the caption is {type(caption).__name__}")
    language = language or language_of(caption)
    names = _names(fields, place, source, language, CAPTION)
    asked = prompt if isinstance(prompt, str) else ""
    question = _parts(asked if asked.replace("<image>", "").strip() else CAPTION_PROMPTS.get(names["language"], ""))
    if not question:
        question = _parts(CAPTION_PROMPTS["en"])
    if not any(part["type"] == "image" for part in question):
        question = [{"type": "image"}, *question]
    answer = [{"type": "text", "text": caption.strip()}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return replace(parse_record({**names, "messages": messages}, (image,)), is_caption=True)


def language_of(text: str) -> str:
    """zh where a text has more Chinese characters than half its Latin letters, else en."""
    return "zh" if 2 * len(_HAN.findall(text)) > len(_LATIN.findall(text)) else "en"


def _digest(messages: list[dict[str, Any]], images: tuple[bytes, ...]) -> str:
    state = xxhash.xxh3_64(json.dumps(messages).encode())
    for image in images:
        state.update(image)
    return state.hexdigest()[:8]  # it tells apart what has one id, no more


def _names(fields: dict[str, Any], place: str, source: str, language: str, category: str) -> dict[str, str]:
    def named(default: str, *keys: str) -> str:
        values = (fields.get(key) for key in keys)
        return next((str(value) for value in values if isinstance(value, (str, int)) and value != ""), default)

    return {
        "id": named(place, "id"),
        "category": named(category, "category"),
        "language": named(language, "language"),
        "source": named(source, "source", "data_source"),
        "license": named("unknown", "license"),
    }


def _messages(turn: Any) -> list[dict[str, Any]]:
    """The messages of a turn: one, two of a pair, or none where all is null."""
    if not isinstance(turn, dict):
        raise Reject("bad_field", f"a turn is {type(turn).__name__}, not an object")
    given = {key: value for key, value in turn.items() if value is not None}
    if "user" in given or "assistant" in given:
        return [{"role": role, "content": _parts(given.get(role, ""))} for role in ("user", "assistant")]
    role = given.get("from", given.get("role"))
    content = next((given[key] for key in ("value", "content", "text") if key in given), None)
    if role is None and content is None:
        return []
    if not isinstance(role, str) or role not in ROLES:
        raise Reject("role_order", f"a turn is of role {shown(role)}, not one of {', '.join(ROLES)}")
    return [{"role": ROLES[role], "content": _parts(content)}]


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        pieces = _PLACEHOLDER.split(content)
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": piece}] if piece else []
        return parts
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise Reject("bad_field", f"the content of a turn is {type(content).__name__}, not a text or a list")
    return [part for item in content for part in _part(item)]


def _part(item: Any) -> list[dict[str, Any]]:
    if isinstance(item, str):
        return _parts(item)
    kind = item.get("type") if isinstance(item, dict) else None
    if kind in ("image", "image_url"):
        return [{"type": "image"}]
    if kind == "text" and isinstance(item.get("text"), str):
        return _parts(item["text"])
    raise Reject("bad_field", f"a part of a turn is neither text nor image: {shown(item)}")
