from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onevision.corpus.record import STRUCTURE_TOKENS, Reject, parse_record, record_fields
from tests.fixtures import sample_record


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}


def fields(*turns: tuple[str, list[Any]], **changes: Any) -> dict[str, Any]:
    turns = turns or (("user", [text("What?")]), ("assistant", [text("That.")]))
    messages = [{"role": role, "content": content} for role, content in turns]
    names = {"id": "a", "category": "c", "language": "en", "source": "s", "license": "l"}
    return {**names, "messages": messages, **changes}


def reason(values: Any, images: int = 0) -> str:
    with pytest.raises(Reject) as raised:
        parse_record(values, (b"x",) * images)
    assert raised.value.detail and "\n" not in raised.value.detail
    return raised.value.reason


@pytest.mark.parametrize("images,turns", [(0, 1), (1, 1), (3, 2), (2, 3)])
def test_good_records_survive_their_json(images: int, turns: int) -> None:
    record = sample_record(5, images, turns)
    assert parse_record(record_fields(record), record.images) == record


def test_a_system_message_may_come_first() -> None:
    record = parse_record(
        fields(("system", [text("Be brief.")]), ("user", [text("Q")]), ("assistant", [text("A")])), ()
    )
    assert [message.role for message in record.messages] == ["system", "user", "assistant"]


def test_a_question_may_be_an_image_alone() -> None:
    assert parse_record(fields(("user", [IMAGE]), ("assistant", [text("A cat.")])), (b"x",)).images == (b"x",)


def test_unknown_keys_are_ignored() -> None:
    assert parse_record(fields(difficulty=3), ()) == parse_record(fields(), ())


U, A, S = ("user", [text("Q")]), ("assistant", [text("A")]), ("system", [text("S")])


@pytest.mark.parametrize("turns", [[U], [A], [S], [U, U, A], [A, U], [U, A, U], [U, A, S], [U, S, A], [S, S, U, A],
                                   [("tool", [text("x")]), A], [S, A]])  # fmt: skip
def test_turns_must_alternate(turns: list[Any]) -> None:
    assert reason(fields(*turns)) == "role_order"


@pytest.mark.parametrize("blank", ["", " \n\t", "\u3000"])
def test_nothing_may_be_empty(blank: str) -> None:
    assert reason(fields(("user", [text("Q")]), ("assistant", [text(blank)]))) == "empty_answer"
    assert reason(fields(("user", [text("Q")]), ("assistant", []))) == "empty_answer"
    assert reason(fields(("user", [text(blank)]), ("assistant", [text("A")]))) == "empty_question"
    assert reason(fields(("system", [text(blank)]), U, A)) == "empty_system"


def test_image_parts_and_images_must_match() -> None:
    one = fields(("user", [IMAGE, text("Q")]), A)
    assert reason(one, images=0) == "image_count"
    assert reason(one, images=2) == "image_count"
    assert reason(fields(), images=1) == "image_count"
    assert reason(fields(U, ("assistant", [IMAGE, text("A")])), images=1) == "image_outside_user"
    assert reason(fields(("system", [IMAGE]), U, A), images=1) == "image_outside_user"


@pytest.mark.parametrize("token", STRUCTURE_TOKENS)
def test_structure_written_out_in_a_text_is_refused(token: str) -> None:
    assert reason(fields(("user", [text(f"a {token} b")]), A)) == "special_token_in_text"
    assert reason(fields(U, ("assistant", [text(token)]))) == "special_token_in_text"
    split = [text(token[:5]), text(token[5:])]
    assert reason(fields(("user", split), A)) == "special_token_in_text"
    assert parse_record(fields(("user", [split[0], IMAGE, split[1]]), A), (b"x",))


@pytest.mark.parametrize("name", ["id", "category", "language", "source", "license"])
@pytest.mark.parametrize("value", [None, 3, ["a"], "a\0b"])
def test_names_must_be_strings(name: str, value: Any) -> None:
    assert reason(fields(**{name: value})) == "bad_field"
    missing = fields()
    del missing[name]
    assert reason(missing) == "bad_field"


@pytest.mark.parametrize("value", ["", "é" * 129])
def test_ids_have_a_width(value: str) -> None:
    assert reason(fields(id=value)) == "bad_field"


@pytest.mark.parametrize("messages", [None, [], "text", {}])
def test_messages_must_be_there(messages: Any) -> None:
    assert reason(fields(messages=messages)) == "no_messages"


@pytest.mark.parametrize("content", [None, "plain text", [None], ["a"], [{}], [text(None)], [{"type": "video"}]])
def test_content_must_be_parts(content: Any) -> None:
    assert reason(fields(("user", content), A)) == "bad_field"


def test_lone_surrogates_are_refused() -> None:
    assert reason(fields(("user", [text("\ud800")]), A)) == "not_utf8"
    assert reason(fields(source="\ud800")) == "not_utf8"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(value=json_values, place=st.lists(st.integers(0, 5), max_size=5))
def test_any_json_is_a_record_or_a_reject(value: Any, place: list[int]) -> None:
    """A good record in which some node is replaced by anything."""
    tree: Any = copy.deepcopy(record_fields(sample_record(1, 0)))
    node, parent, key = tree, None, None
    for step in place:
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        if not keys:
            break
        parent, key = node, keys[step % len(keys)]
        node = parent[key]
    if parent is None:
        tree = value
    else:
        parent[key] = value
    try:
        record = parse_record(tree, ())
    except Reject as reject:
        assert reject.reason.replace("_", "").isalnum() and reject.reason.islower()
    else:
        assert parse_record(record_fields(record), ()) == record
