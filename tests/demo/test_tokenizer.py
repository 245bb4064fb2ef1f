"""The demo's tokenizer: special tokens, digits one by one, any text and back, the same in transformers."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from onevision.corpus.formats.records import read_records
from onevision.corpus.record import Record
from onevision.data.template import encode, encode_prompt
from onevision.data.tokenizer import load_tokenizer
from onevision.demo.tokenizer import ALPHABET, LONGEST, SPECIAL_TOKENS, build_tokenizer
from onevision.errors import InputError


@pytest.fixture(scope="module")
def fast(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))


def test_special_tokens_are_single_and_distinct(fast: Tokenizer) -> None:
    ids = [fast.encode(token).ids for token in SPECIAL_TOKENS]
    assert all(len(found) == 1 for found in ids)
    assert len({found[0] for found in ids}) == len(SPECIAL_TOKENS) == 14


def test_size_and_determinism(source: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    again = build_tokenizer(source / "train", tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again.folder / name).read_bytes() == (tokenizer_folder / name).read_bytes()
    assert 400 < again.summary["vocab_size"] <= 2048
    small = build_tokenizer(source / "train", tmp_path / "small", vocab_size=300)
    assert small.summary["vocab_size"] == 300
    assert small.summary["merges"] == 300 - ALPHABET - len(SPECIAL_TOKENS)


def test_digits_stand_alone(fast: Tokenizer) -> None:
    assert fast.encode("3 7 1").tokens[::2] == ["3", "7", "1"]
    assert [token for token in fast.encode("100, 25").tokens if token.isdigit()] == list("10025")
    words = [token for token in fast.get_vocab() if token not in SPECIAL_TOKENS]
    assert not any(len(word) > 1 and set(word) & set("0123456789") for word in words)
    assert max(map(len, words)) <= LONGEST


def test_frequent_words_are_one_token(fast: Tokenizer) -> None:
    assert fast.encode(" assistant").tokens == ["Ġassistant"]
    assert len(fast.encode("Which digit is this?").ids) <= 5


@given(text=st.text(max_size=40).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
def test_any_text_comes_back_in_nfc(text: str, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_transformers_loads_the_same(source: Path, tokenizer_folder: Path, fast: Tokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.pad_token == "<|endoftext|>"
    texts = [message.text for record in _records(source) for message in record.messages]
    assert len(texts) > 500
    for text in {*texts, "café 你好 <|im_start|>user\nHi 42<|im_end|>\n"}:
        assert loaded(text)["input_ids"] == fast.encode(text).ids


def test_chat_template_is_the_template_of_training(source: Path, tokenizer_folder: Path) -> None:
    loaded, ours = AutoTokenizer.from_pretrained(tokenizer_folder), load_tokenizer(tokenizer_folder)
    for record in _records(source)[::10]:
        messages = [
            {"role": message.role, "content": [{"type": part.type, "text": part.text} for part in message.content]}
            for message in record.messages
        ]
        pads = [1] * len(record.images)
        whole = loaded.apply_chat_template(messages, tokenize=False)
        assert loaded(whole.removesuffix("\n"))["input_ids"] == encode(record, ours, pads).ids.tolist()
        asked = loaded.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert loaded(asked)["input_ids"] == encode_prompt(record.messages[:-1], ours, pads).tolist()
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert loaded.apply_chat_template(plain, tokenize=False) == expected


def test_bad_input(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="records.jsonl does not exist"):
        build_tokenizer(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="vocab_size=100 is below 270"):
        build_tokenizer(source / "train", tmp_path / "out", vocab_size=100)
    assert not (tmp_path / "out").exists()


def _records(source: Path) -> list[Record]:
    return [record for record in read_records(source / "train") if isinstance(record, Record)]
