from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import InputError
from tests.fixtures import SPECIAL_TOKENS, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_text_survives_encoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= number < tokenizer.vocab_size for number in ids)


def test_special_tokens_are_found_by_name(tokenizer: Tokenizer) -> None:
    named = {
        "<|im_start|>": tokenizer.im_start,
        "<|im_end|>": tokenizer.im_end,
        "<|vision_start|>": tokenizer.vision_start,
        "<|vision_end|>": tokenizer.vision_end,
        "<|image_pad|>": tokenizer.image_pad,
        "<|endoftext|>": tokenizer.endoftext,
    }
    assert len(set(named.values())) == len(named)
    for token, number in named.items():
        assert tokenizer.encode(f"a{token}b") == [*tokenizer.encode("a"), number, *tokenizer.encode("b")]
        assert tokenizer.decode([number]) == token


def test_fingerprint_follows_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tiny_tokenizer(tmp_path / "same").fingerprint == tokenizer.fingerprint
    other = tiny_tokenizer(tmp_path / "other")
    content = json.loads(other.path.read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    other.path.write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path / "other").fingerprint != tokenizer.fingerprint


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    content = json.loads(tokenizer.path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer.path.write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("a long text, " * 9) == tokenizer.encode("a long text, " * 9)


def test_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json does not exist.*data\.tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}'])
def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("token", [token for token in SPECIAL_TOKENS if token != "<|video_pad|>"])
def test_a_tokenizer_without_a_needed_token_is_refused(tmp_path: Path, token: str) -> None:
    path = tiny_tokenizer(tmp_path).path
    path.write_text(path.read_text(encoding="utf-8").replace(token, token.replace("<|", "<")), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        load_tokenizer(tmp_path)
    assert token in str(raised.value) and str(path) in str(raised.value)
