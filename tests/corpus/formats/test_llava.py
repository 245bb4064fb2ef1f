from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from onevision.corpus.formats import Rejected, list_units, llava, textfile
from onevision.corpus.record import Record
from onevision.errors import InputError
from onevision.recipe import DataRecipe
from tests.corpus.formats.sources import jpeg, llava_rows, read, texts, write_llava


def recipe(source: Path, **options: Any) -> DataRecipe:
    return DataRecipe(source=str(source), format="llava-json", **{"shard_samples": 6, **options})


def expected(i: int) -> list[tuple[str, str]]:
    turns = [("user", "<>" * (i % 3) + f"Question {i}?"), ("assistant", f"Answer {i}.")]
    for turn in range(i % 3):
        turns += [("user", f"And {turn}?"), ("assistant", f"{turn} 点。")]
    return turns


@pytest.mark.parametrize("lines", [False, True])
def test_rows_come_back_as_records(tmp_path: Path, lines: bool) -> None:
    write_llava(tmp_path, lines)
    records = read(recipe(tmp_path))
    assert [unit.name for unit in list_units(recipe(tmp_path)).units] == [
        f"set.{'jsonl' if lines else 'json'} rows {a} to {b}" for a, b in ((1, 6), (7, 12), (13, 18), (19, 20))
    ]
    for i, record in enumerate(records):
        assert texts(record) == expected(i) and isinstance(record, Record)
        assert record.images == tuple(jpeg(i * 10 + k) for k in range(i % 3))
        assert record.id.startswith(f"row-{i}#")
        assert (record.source, record.category, record.language) == ("set", "instruct", "en")
    assert len(records) == 20


def test_a_single_file_and_images_elsewhere(tmp_path: Path) -> None:
    write_llava(tmp_path / "a")
    whole = read(recipe(tmp_path / "a"))
    (tmp_path / "set.json").write_bytes((tmp_path / "a" / "set.json").read_bytes())
    assert read(recipe(tmp_path / "set.json", image_root=str(tmp_path / "a"))) == whole


def test_an_array_is_read_from_any_place_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llava(tmp_path)
    whole = read(recipe(tmp_path))
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr(textfile, "BLOCK", block)
        for most in (1, 3, 50):
            assert read(recipe(tmp_path, shard_samples=most)) == whole


def test_broken_lines_cost_themselves(tmp_path: Path) -> None:
    write_llava(tmp_path, lines=True)
    path = tmp_path / "set.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3], lines[7], lines[9] = b"{\n", b'"\xff"\n', b"[1]\n"
    path.write_bytes(b"".join(lines))
    found = read(recipe(tmp_path))
    assert len(found) == 20
    assert [(item.id, item.reason) for item in found if isinstance(item, Rejected)] == [
        ("set/4", "bad_json"), ("set/8", "not_utf8"), ("set/10", "bad_field"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "layout", ["one line", "indented", "a row a line", "a row a line, opened on a line of its own"]
)
def test_an_array_is_read_whatever_its_name(tmp_path: Path, layout: str) -> None:
    write_llava(tmp_path)
    path, whole = tmp_path / "set.json", read(recipe(tmp_path))
    rows = json.loads(path.read_text())
    opened = "[\n" if "opened" in layout else "["
    by_line = opened + ",\n".join(json.dumps(row) for row in rows) + "]\n"
    text = {"one line": json.dumps(rows), "indented": json.dumps(rows, indent=2)}.get(layout, by_line)
    path.unlink()
    (tmp_path / "set.jsonl").write_text("\ufeff\n" + text)
    for most in (1, 6, 100):
        assert read(recipe(tmp_path, shard_samples=most)) == whole


@pytest.mark.parametrize("first", [b"[1]", b"[1", b"[" * 100_000])
def test_lines_of_which_the_first_is_an_array_cost_that(tmp_path: Path, first: bytes) -> None:
    write_llava(tmp_path, lines=True)
    path = tmp_path / "set.jsonl"
    path.write_bytes(first + b"\n" + path.read_bytes())
    found = read(recipe(tmp_path))
    assert [item.id for item in found if isinstance(item, Rejected)] == ["set/1"] and len(found) == 21


@pytest.mark.parametrize("most", [1, 6, 100])
def test_a_broken_array_keeps_what_came_before(tmp_path: Path, most: int) -> None:
    write_llava(tmp_path)
    path = tmp_path / "set.json"
    whole, data = read(recipe(tmp_path)), path.read_bytes()
    place = data.index(b'"row-13"')
    for broken in (data[:place], data[: place + 9], data[:place] + b"}}" + data[place:], data[:-1]):
        path.write_bytes(broken)
        *kept, last = read(recipe(tmp_path, shard_samples=most))
        assert kept == whole[: 20 if broken == data[:-1] else 13]
        assert isinstance(last, Rejected) and last.reason == "array_unreadable" and last.id == f"set/{len(kept) + 1}"
    path.write_bytes(data[:place] + b'"row-\xff3"' + data[place + 8 :])  # costs the record in which it is
    found = read(recipe(tmp_path, shard_samples=most))
    assert [item.reason for item in found if isinstance(item, Rejected)] == ["not_utf8"] and len(found) == 20


@pytest.mark.parametrize("most", [1, 6, 100])
def test_what_comes_after_an_array_is_not_lost_without_a_word(tmp_path: Path, most: int) -> None:
    write_llava(tmp_path)
    path = tmp_path / "set.json"
    whole, data = read(recipe(tmp_path)), path.read_bytes()
    path.write_bytes(data + b" \n")
    assert read(recipe(tmp_path, shard_samples=most)) == whole
    path.write_bytes(data + b"\n" + data)  # cat a.json b.json
    *kept, last = read(recipe(tmp_path, shard_samples=most))
    assert kept == whole and isinstance(last, Rejected)
    assert (last.id, last.reason) == ("set/21", "array_unreadable")
    assert f"the array ends at byte {len(data) - 1}; what comes after it is lost" in last.detail


@pytest.mark.parametrize("lines", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, lines: bool) -> None:
    write_llava(tmp_path, lines)
    (path,) = tmp_path.glob("set.*")
    whole, data = read(recipe(tmp_path)), path.read_bytes()
    path.write_bytes(codecs.BOM_UTF8 + data)
    for most in (1, 6, 100):
        assert read(recipe(tmp_path, shard_samples=most)) == whole


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    (tmp_path / "x.jpg").write_bytes(jpeg(0))
    rows: list[tuple[Any, str]] = [
        ({"id": "gone", "image": "gone.jpg", "conversations": talk}, "image_missing"),
        ({"id": "null", "image": None, "conversations": talk}, "image_count"),
        ({"id": "nulls", "image": [None], "conversations": talk}, "image_missing"),
        ({"id": "up", "image": "../x.jpg", "conversations": talk}, "image_path"),
        ({"id": "more", "image": ["x.jpg", "x.jpg"], "conversations": talk}, "image_count"),
        ({"id": "none", "image": "x.jpg"}, "no_messages"),
        ({"id": "open", "conversations": talk[:1] + talk}, "role_order"),
        ({"id": "film", "video": "x.mp4", "conversations": talk}, "video"),
        ({"id": "who", "conversations": [{"from": "narrator", "value": "x"}]}, "role_order"),
        ({"id": "answer", "image": "x.jpg", "conversations": [{"user": "Q", "assistant": "<image>"}]},
         "image_outside_user"),
        ({"id": "number", "conversations": [{"from": "human", "value": 7}]}, "bad_field"),
    ]  # fmt: skip
    (tmp_path / "set.json").write_text(json.dumps([row for row, _ in rows]))
    found = read(recipe(tmp_path, shard_samples=100))
    assert [(item.id, item.reason) for item in found if isinstance(item, Rejected)] == [
        (row["id"], reason) for row, reason in rows
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \*\.json or \*\.jsonl"):
        list_units(recipe(tmp_path))
    write_llava(tmp_path)
    unit = list_units(recipe(tmp_path)).units[1]
    (tmp_path / "set.json").unlink()
    with pytest.raises(InputError, match=r"set\.json cannot be read: No such file"):
        list(llava.read_unit(recipe(tmp_path), unit))


def test_digest_follows_texts_and_the_bytes_of_images(tmp_path: Path) -> None:
    write_llava(tmp_path)
    digests = [list_units(recipe(tmp_path)).digest]
    image = tmp_path / "pictures" / "1_0.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    digests.append(list_units(recipe(tmp_path)).digest)
    image.unlink()
    digests.append(list_units(recipe(tmp_path)).digest)
    rows = llava_rows()
    rows[0]["conversations"][1]["value"] = "Other."
    (tmp_path / "set.json").write_text(json.dumps(rows))
    digests.append(list_units(recipe(tmp_path)).digest)
    assert len(set(digests)) == 4


def test_an_empty_array_has_no_units(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(" [ ] ")
    assert list_units(recipe(tmp_path)).units == ()
