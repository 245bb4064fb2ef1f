"""What was said so far: messages and the images they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from onevision.corpus.record import STRUCTURE_TOKENS, Message, Part
from onevision.errors import InputError


@dataclass(frozen=True)
class Picture:
    """An image that can be asked about: its file's name, its pixels' width and height, its patches [h * w, 588]."""

    name: str
    size: tuple[int, int]
    grid: tuple[int, int]
    patches: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens that it takes, without those of its begin and end."""
        return self.grid[0] * self.grid[1] // 4


@dataclass(frozen=True)
class Conversation:
    """Messages, and the pictures of their image parts in order. It does not change: a turn makes a new one."""

    messages: tuple[Message, ...] = ()
    pictures: tuple[Picture, ...] = field(default=())

    def ask(self, content: Sequence[str | Picture]) -> Conversation:
        """With a question of texts and pictures behind it.

        Raises:
            InputError: there is no text in it, one of the chat template's tokens, or what is no text (bytes of a
                terminal or a pipe that are not UTF-8).
        """
        texts = [piece for piece in content if isinstance(piece, str)]
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise InputError("the question is not UTF-8 text")
        for token in STRUCTURE_TOKENS:
            if any(token in text for text in texts):
                raise InputError(f"the question contains {token}, which only the chat template may write")
        if not "".join(texts).strip():
            raise InputError("the question has no text")
        parts = tuple(Part("text", piece) if isinstance(piece, str) else Part("image") for piece in content)
        pictures = tuple(piece for piece in content if not isinstance(piece, str))
        return Conversation((*self.messages, Message("user", parts)), (*self.pictures, *pictures))

    def answered(self, text: str) -> Conversation:
        """With the answer to its question behind it."""
        # The model may say them; said again to it they would be structure. Without one, another may come together.
        while found := next((token for token in STRUCTURE_TOKENS if token in text), ""):
            text = text.replace(found, "")
        return Conversation((*self.messages, Message("assistant", (Part("text", text),))), self.pictures)
