"""The tokens of a text from those of its words, which are remembered: several times as fast as encoding it anew.

A byte-level BPE cuts a text into words by a regular expression and encodes each word by itself. That is done here
where it is exact: for tokenizers of that kind and texts of common Latin and Chinese characters, which Python's regular
expressions and every version of Unicode put into the same classes. All else the library encodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

LETTERS = "A-Za-zÀ-ÖØ-Þà-öø-ÿ一-龥"  # not ß, which is two letters where case does not count
SIGNS = "‘’“”–—…•，。、；：？！（）《》【】"  # neither letter, digit nor blank
COMMON = re.compile(rf"[\t\n\r\x20-\x7e{LETTERS}{SIGNS}]*")  # each is its own composed form (NFC)
KEPT_WORDS = 200_000
KEPT_TEXTS = 20_000
SHORT = 120  # characters of a text that is kept whole
LONGEST_KEPT = 20  # characters
_CLASSES = {r"\p{L}": LETTERS, r"\p{N}": "0-9"}
_ESCAPES = {r"\r", r"\n", r"\t", r"\s", r"\S"}  # those that mean the same in both kinds of regular expressions


class WordTokens:
    """Encodes and counts as the tokenizer itself would; special tokens that are written out count, none is added."""

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        self._model = fast.model
        self._known: dict[str, list[int]] = {}  # words; threads may share it: what they write is the same
        self._recurring: dict[str, list[int]] = {}  # short texts, as those of a template are
        self._words = _word_pattern(fast)
        self._added = _added_pattern(fast)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; not to be changed."""
        if len(text) > SHORT:
            return self._encode(text)
        ids = self._recurring.get(text)
        if ids is None:
            ids = self._encode(text)
            if len(self._recurring) < KEPT_TEXTS:
                self._recurring[text] = ids
        return ids

    def _encode(self, text: str) -> list[int]:
        words = self._split(text)
        if words is None:
            # Of the library's ways to encode, this one lets other threads run meanwhile.
            return self._fast.encode_batch_fast([text], add_special_tokens=False)[0].ids
        found = list(map(self._known.get, words))
        if None in found:
            found = [self._of_word(word) if ids is None else ids for word, ids in zip(words, found, strict=True)]
        return list(chain.from_iterable(found))  # type: ignore[arg-type]  # none is left

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many ids `encode` gives for each text."""
        found = [self._count(text) for text in texts]
        rest = [number for number, count in enumerate(found) if count is None]
        encoded = self._fast.encode_batch_fast([texts[number] for number in rest], add_special_tokens=False)
        for number, encoding in zip(rest, encoded, strict=True):
            found[number] = len(encoding)
        return [count for count in found if count is not None]

    def _count(self, text: str) -> int | None:
        words = self._split(text)
        if words is None:
            return None
        known = self._known
        total = 0
        for word in words:
            found = known.get(word)
            total += len(self._of_word(word) if found is None else found)
        return total

    def _split(self, text: str) -> list[str] | None:
        """The words of a text and the added tokens between them; None if they cannot be encoded alone."""
        if self._words is None or not COMMON.fullmatch(text):
            return None
        pieces = self._added.split(text) if self._added else [text]  # every second one is an added token
        found: list[str] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                found.append(piece)
                continue
            words = self._words.findall(piece)
            if sum(map(len, words)) != len(piece):  # text between words is a word too
                return None
            found += words
        return found

    def _of_word(self, word: str) -> list[int]:
        added = self._fast.token_to_id(word) if self._added and self._added.fullmatch(word) else None
        if added is not None:
            ids = [added]
        else:
            text = "".join(map(_BYTES.__getitem__, word.encode()))
            ids = [token.id for token in self._model.tokenize(text)]
        if len(word) <= LONGEST_KEPT:
            if len(self._known) >= KEPT_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it can be printed."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 0x100 + hidden.index(byte)) for byte in range(256)]


_BYTES = byte_characters()


def _word_pattern(fast: FastTokenizer) -> re.Pattern[str] | None:
    """The tokenizer's pattern of words for texts of COMMON characters; None if its words cannot be encoded alone."""
    before, normalizer, model = _settings(fast.pre_tokenizer), _settings(fast.normalizer), fast.model
    steps = before.get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"] or not isinstance(model, BPE):
        return None
    split, byte_level = steps
    pattern = split["pattern"].get("Regex")
    plain = (
        normalizer.get("type", "NFC") == "NFC"
        and (split["behavior"], split["invert"]) == ("Isolated", False)
        and not (byte_level["add_prefix_space"] or byte_level["use_regex"])
        and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
        and not any(token.lstrip or token.rstrip or token.single_word for token in _added_tokens(fast))
    )
    return _translated(pattern) if plain and pattern else None


def _settings(step: Any) -> dict[str, Any]:
    """What a step of the tokenizer says of itself; empty where there is none."""
    found: dict[str, Any] = json.loads(step.__getstate__()) if step is not None else {}
    return found


def _added_tokens(fast: FastTokenizer) -> list[Any]:
    return list(fast.get_added_tokens_decoder().values())


def _translated(pattern: str) -> re.Pattern[str] | None:
    """The pattern with its classes of letters and digits written out; None if it may mean something else in Python."""
    found, inside = "", False
    for token in re.findall(r"\\[pP]\{\^?\w+\}|\\.|\[\^?|\}\+|.", pattern, re.DOTALL):
        if token in _CLASSES:
            found += _CLASSES[token] if inside else f"[{_CLASSES[token]}]"
            continue
        if token[0] == "\\" and token[1].isalnum() and token not in _ESCAPES:
            return None
        if (token[0] == "[" and inside) or (token in ("^", "$") and not inside) or token in ("&", "}+"):
            return None
        inside = token[0] == "[" or (inside and token != "]")
        found += token
    try:
        words = re.compile(found, re.ASCII)
    except re.error:
        return None
    return None if words.groups else words


def _added_pattern(fast: FastTokenizer) -> re.Pattern[str] | None:
    """What finds the added tokens in a text, the longest first."""
    tokens = sorted((token.content for token in _added_tokens(fast)), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None
