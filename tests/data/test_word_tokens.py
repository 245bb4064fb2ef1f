"""Tokens put together from words are those that encoding makes, for every text and for tokenizers of any kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from onevision.data import word_tokens
from onevision.data.word_tokens import WordTokens
from onevision.demo.tokenizer import PIECES
from tests.fixtures import QWEN_WORDS, SPECIAL_TOKENS, TEXTS


def trained(pattern: str, change: Callable[[FastTokenizer], None] = lambda fast: None) -> FastTokenizer:
    """A byte-level BPE of the fixtures' texts with this pattern of words, then changed."""
    fast = FastTokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(TEXTS * 4, trainer)
    change(fast)
    return fast


PATTERNS = {
    "qwen": QWEN_WORDS,
    "demo": PIECES,
    "numbers of three": QWEN_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|"),
    "letters alone": r"\p{L}+",  # what stands between two words is a word
}
ENCODERS = {name: (fast, WordTokens(fast)) for name, fast in ((name, trained(p)) for name, p in PATTERNS.items())}
# Characters with which such patterns and normal forms have to do.
NOTABLE = st.sampled_from(
    ["'s", "'S", "'ſ", "ß", "\u0130", " ", "  ", "\t", "\n", "\r\n", "\n\n ", "\x0b", "\x1c", "\x85", "\xa0", "\u3000",
     "ﬁ", "e\u0301", "é", "ÿ", "×", "²", "½", "٣", "Ⅷ", "中文", "。", "“", "𝒳", "😀", "\u200d", "\ufeff", "i\u0307",
     "한", "<|im_end|>", "<|im_start|>", "<|", "|>", "1234", "dots", "The picture", "x_y", "a-b", "\x00"]
)  # fmt: skip
ANY = st.lists(NOTABLE | st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=12).map("".join)
ASCII = "\t\n\r" + "".join(map(chr, range(0x20, 0x7F)))
PLAIN = st.text(st.sampled_from(ASCII + word_tokens.SIGNS + "ÀÖØöøÿéÞ一龥图片里有什么"))


@pytest.mark.parametrize("name", PATTERNS)
@given(texts=st.lists(ANY | PLAIN, max_size=5))
@settings(max_examples=300)
def test_ids_are_those_of_the_tokenizer(name: str, texts: list[str]) -> None:
    fast, words = ENCODERS[name]
    ids = [fast.encode(text, add_special_tokens=False).ids for text in texts]
    assert [words.encode(text) for text in texts] == ids
    assert words.counts(texts) == list(map(len, ids))


def test_every_common_character_alone_and_in_a_word() -> None:
    fast, words = ENCODERS["qwen"]
    characters = [chr(c) for c in range(0x10000) if word_tokens.COMMON.fullmatch(chr(c))]
    texts = [f"{c}ab {c}1{c}{c} 'S{c}\n{c}" for c in characters]
    assert len(characters) > 20_000
    assert [words.encode(text) for text in texts] == [
        encoding.ids for encoding in fast.encode_batch(texts, add_special_tokens=False)
    ]


def test_common_texts_are_put_together_from_their_words() -> None:
    _, words = ENCODERS["qwen"]
    for text in [*TEXTS, "What's “this”?<|im_end|>\n"]:
        assert "".join(words._split(text) or []) == text


def lone_prefix(fast: FastTokenizer) -> None:
    split, _ = fast.pre_tokenizer
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=True)])


def lower(fast: FastTokenizer) -> None:
    fast.normalizer = normalizers.Lowercase()


def strips(fast: FastTokenizer) -> None:
    fast.add_tokens([AddedToken("dots", lstrip=True, rstrip=True)])


def merged(fast: FastTokenizer) -> None:
    _, byte_level = fast.pre_tokenizer
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "merged_with_previous")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (QWEN_WORDS, lone_prefix), (QWEN_WORDS, lower), (QWEN_WORDS, strips), (QWEN_WORDS, merged),
        (r"\p{Lu}\p{L}*|\p{L}+|\P{L}", lambda fast: None), (r"[a-z&&[^t]]+|.", lambda fast: None),
        (r"\h+|\s|\w+|.", lambda fast: None), (r"^\p{L}+$|.", lambda fast: None), (r"(a|t)+|.", lambda fast: None),
    ],
)  # fmt: skip
def test_other_tokenizers_encode(pattern: str, change: Callable[[FastTokenizer], None]) -> None:
    fast = trained(pattern, change)
    words = WordTokens(fast)
    texts = [*TEXTS, " three  dots and\nAbc tt-HE 's"]
    assert words._split(texts[0]) is None
    assert [words.encode(text) for text in texts] == [fast.encode(text, add_special_tokens=False).ids for text in texts]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_tokens, "KEPT_WORDS", 10)
    fast = trained(QWEN_WORDS)
    words = WordTokens(fast)
    for k in range(100):
        assert words.encode(f"word{k} and {'a' * k}") == fast.encode(f"word{k} and {'a' * k}").ids
        assert len(words._known) <= 10
