"""The record: one training sample as it came in, with any number of images and of turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Tokens that give the template its structure. Written out in a text they would be tokenised as structure.
STRUCTURE_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MAX_ID_BYTES = 256  # ids are stored as a fixed-width column
MAX_NAME_BYTES = 1024  # and so are the different categories, languages, sources and licenses


@dataclass(frozen=True)
class Part:
    """A piece of a message: `type` is "text" (with `text`) or "image" (the next image of the record)."""

    type: str
    text: str = ""


@dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user or assistant."""

    role: str
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content)


@dataclass(frozen=True)
class Record:
    """One sample. `images` are the bytes of the files as they came in; image parts refer to them in order. `is_caption`
    tells the filters of an import that the answer came as an image's caption, whatever its category is; it is not kept.
    """

    id: str
    images: tuple[bytes, ...]
    messages: tuple[Message, ...]
    category: str
    language: str
    source: str
    license: str
    is_caption: bool = field(default=False, compare=False)


class Reject(Exception):
    """A record that cannot be used: `reason` in snake_case is counted, `detail` goes into the ledger."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def parse_record(fields: Any, images: tuple[bytes, ...]) -> Record:
    """Check the JSON fields of a record and join them with its images; keys that are not the record's are ignored.

    The turns are an optional system message, then user and assistant in strict alternation, an assistant's last.

    Raises:
        Reject: the first thing found wrong.
    """
    if not isinstance(fields, dict):
        raise Reject("bad_field", f"the record is {type(fields).__name__}, not an object")
    names: dict[str, Any] = {name: _name(fields, name) for name in ("id", "category", "language", "source", "license")}
    if not names["id"] or len(names["id"].encode()) > MAX_ID_BYTES:
        raise Reject("bad_field", f"id has {len(names['id'].encode())} bytes, not 1 to {MAX_ID_BYTES}")
    for name, value in names.items():
        if len(value.encode()) > MAX_NAME_BYTES:
            raise Reject("bad_field", f"{name} has {len(value.encode())} bytes, not up to {MAX_NAME_BYTES}")
    turns = fields.get("messages")
    if not isinstance(turns, list) or not turns:
        raise Reject("no_messages", f"messages is {shown(turns)}")
    messages = tuple(_message(turn, number) for number, turn in enumerate(turns))
    _check_roles(messages)
    for number, message in enumerate(messages):
        _check_content(message, number)
    wanted = sum(part.type == "image" for message in messages for part in message.content)
    if wanted != len(images):
        raise Reject("image_count", f"{wanted} image parts in the messages, {len(images)} images")
    return Record(images=images, messages=messages, **names)


def record_fields(record: Record) -> dict[str, Any]:
    """The record without its images as a JSON value that `parse_record` reads."""
    return {
        "id": record.id,
        "messages": [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text} if part.type == "text" else {"type": "image"}
                    for part in message.content
                ],
            }
            for message in record.messages
        ],
        "category": record.category,
        "language": record.language,
        "source": record.source,
        "license": record.license,
    }


def shown(value: Any) -> str:
    """What a person is shown of a wrong value."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _utf8(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Reject("not_utf8", f"{what}: {error.reason} at character {error.start}") from None
    return value


def _name(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or "\0" in value:
        raise Reject("bad_field", f"{name} is {shown(value)}, not a string")
    return _utf8(value, name)


def _message(turn: Any, number: int) -> Message:
    content = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(content, list):
        raise Reject("bad_field", f"message {number} has no list of content parts: {shown(turn)}")
    return Message(str(turn.get("role")), tuple(_part(part, number) for part in content))


def _part(part: Any, number: int) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return Part("image")
    if kind == "text" and isinstance(part.get("text"), str):
        return Part("text", _utf8(part["text"], f"message {number}"))
    raise Reject("bad_field", f"message {number} has a part that is neither text nor image: {shown(part)}")


def _check_roles(messages: tuple[Message, ...]) -> None:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or turns != expected:
        raise Reject("role_order", f"roles are {shown(roles)}, not (system,) user, assistant, …")


def _check_content(message: Message, number: int) -> None:
    has_image = any(part.type == "image" for part in message.content)
    if has_image and message.role != "user":
        raise Reject("image_outside_user", f"message {number} ({message.role}) holds an image")
    if not has_image and not message.text.strip():
        kind = {"assistant": "empty_answer", "user": "empty_question"}.get(message.role, "empty_system")
        raise Reject(kind, f"message {number} is empty")
    # Joined, because a token may be spread over neighbouring parts; an image between them keeps them apart.
    joined = "".join(part.text if part.type == "text" else "\n" for part in message.content)
    if "<|" not in joined:
        return
    for token in STRUCTURE_TOKENS:
        if token in joined:
            raise Reject("special_token_in_text", f"message {number} contains {token}")
