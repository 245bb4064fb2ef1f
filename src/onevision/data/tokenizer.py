"""The tokenizer: `tokenizer.json` of a model folder, with the ids of the template's tokens found by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from onevision.data.word_tokens import WordTokens
from onevision.errors import InputError
from onevision.fingerprint import file_digest


class Tokenizer:
    """Text to token ids and back; `fingerprint` is the digest of `tokenizer.json`."""

    def __init__(self, fast: FastTokenizer, path: Path, fingerprint: str) -> None:
        self._fast = fast
        self._words = WordTokens(fast)
        self.path = path
        self.fingerprint = fingerprint
        self.vocab_size: int = fast.get_vocab_size(with_added_tokens=True)
        self.im_start = self._id("<|im_start|>")
        self.im_end = self._id("<|im_end|>")
        self.vision_start = self._id("<|vision_start|>")
        self.vision_end = self._id("<|vision_end|>")
        self.image_pad = self._id("<|image_pad|>")
        self.endoftext = self._id("<|endoftext|>")  # pads the tail of a pack
        # What ends an answer: the end of a turn, or, from a model that was trained on plain text before, of a document.
        self.stop_tokens = (self.im_end, self.endoftext)

    def _id(self, token: str) -> int:
        number = self._fast.token_to_id(token)
        if number is None:
            raise InputError(f"{self.path} has no token {token}: use the tokenizer of a Qwen2.5-VL or Qwen3 model")
        return int(number)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens that are written out in it become their ids, none is added."""
        return self._words.encode(text)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many ids `encode` gives for each text."""
        return self._words.counts(texts)

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = True) -> str:
        """Text of token ids, with or without the special tokens among them."""
        return self._fast.decode([int(number) for number in ids], skip_special_tokens=not special)

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of token ids as they come, in whole characters: together what `decode` gives.

        A character may be spread over tokens; its first ones alone give the replacement character.
        """
        waiting: list[int] = []
        text = ""
        for number in ids:
            waiting.append(number)
            text = self.decode(waiting)
            if not text.endswith("\ufffd"):
                yield text
                waiting, text = [], ""
        if text:
            yield text


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `folder/tokenizer.json`.

    Raises:
        InputError: the file is missing or not a tokenizer, or lacks a token that the template needs.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: data.tokenizer must name a folder with a tokenizer.json")
    try:
        fast = FastTokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception, whatever is wrong with the file
        raise InputError(f"{path} is not a tokenizer: {error}") from None
    fast.no_padding()
    fast.no_truncation()
    return Tokenizer(fast, path, file_digest(path))
