from __future__ import annotations

import json
from pathlib import Path

import pytest

from onevision.corpus.formats import Rejected, list_units, read_unit
from onevision.corpus.formats.records import read_records
from onevision.corpus.record import Record, record_fields
from onevision.errors import InputError
from onevision.recipe import DataRecipe
from tests.corpus.formats.sources import read
from tests.fixtures import sample_record, write_records


def recipe(source: Path, shard_samples: int = 5) -> DataRecipe:
    return DataRecipe(source=str(source), shard_samples=shard_samples)


def digest(source: Path) -> str:
    return list_units(recipe(source)).digest


def test_records_come_back_in_order(tmp_path: Path) -> None:
    records = [sample_record(i, i % 4, 1 + i % 3) for i in range(12)]
    assert list(read_records(write_records(tmp_path, records))) == records


def test_an_array_is_read_too(tmp_path: Path) -> None:
    records = [sample_record(i, i % 4, 1 + i % 3) for i in range(12)]
    path = write_records(tmp_path, records) / "records.jsonl"
    rows: list[object] = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(json.dumps([*rows, 5], indent=1))
    for found in (list(read_records(tmp_path)), read(recipe(tmp_path))):
        *kept, last = found
        assert kept == records and isinstance(last, Rejected)
        assert (last.id, last.reason) == ("row 13", "bad_field") and last.detail.startswith("row 13: ")


def test_missing_source_names_the_file(tmp_path: Path) -> None:
    for attempt in (lambda: list(read_records(tmp_path / "no")), lambda: digest(tmp_path / "no")):
        with pytest.raises(InputError, match=r"no/records\.jsonl does not exist.*data\.source"):
            attempt()


def lines(folder: Path) -> list[bytes]:
    return (folder / "records.jsonl").read_bytes().splitlines(keepends=True)


def test_what_is_wrong_with_a_line_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    write_records(tmp_path, [sample_record(i) for i in range(2)])
    good = lines(tmp_path)
    fields = json.loads(good[0])

    def line(**changes: object) -> bytes:
        return json.dumps({**fields, **changes}).encode() + b"\n"

    (tmp_path / "images" / "folder.png").mkdir()
    bad = [
        (b"{\n", "line 2", "bad_json"),
        (b"[" * 100_000 + b"\n", "line 3", "bad_json"),
        (b'"\xff"\n', "line 4", "not_utf8"),
        (b"[1]\n", "line 5", "bad_field"),
        (line(id="gone", images=["images/gone.png"]), "gone", "image_missing"),
        (line(id="dir", images=["images/folder.png"]), "dir", "image_unreadable"),
        (line(id="up", images=["../secret.png"]), "up", "image_path"),
        (line(id="root", images=["/etc/hostname"]), "root", "image_path"),
        (line(id="nul", images=["a\0b"]), "nul", "image_path"),
        (line(id="none", images=[""]), "none", "image_path"),
        (line(id="null", images=None), "null", "bad_field"),
        (line(id="few", images=[]), "few", "image_count"),
        (line(id="half", messages=[]), "half", "no_messages"),
        (line(id=7), "line 15", "bad_field"),
        (line(id="\ud800"), "?", "not_utf8"),
    ]
    (tmp_path / "records.jsonl").write_bytes(good[0] + b"".join(text for text, _, _ in bad) + b"\n  \n" + good[1])
    found = list(read_records(tmp_path))
    assert found[0] == sample_record(0) and found[-1] == sample_record(1)
    rejected = found[1:-1]
    assert [(item.id, item.reason) for item in rejected if isinstance(item, Rejected)] == [
        (name, reason) for _, name, reason in bad
    ]
    assert all(isinstance(item, Rejected) and f"line {n}" in item.detail for n, item in enumerate(rejected, start=2))
    for most in (1, 4, 100):
        data = recipe(tmp_path, most)
        units = list_units(data).units
        assert len(units) == -(-len(found) // most)
        assert [item for unit in units for item in read_unit(data, unit)] == found


def test_text_only_lines_need_no_images_key(tmp_path: Path) -> None:
    record = sample_record(0, 0)
    (tmp_path / "records.jsonl").write_text(json.dumps(record_fields(record)), encoding="utf-8")
    assert list(read_records(tmp_path)) == [record]


def test_digest_follows_text_and_sizes_of_images_and_missing_ones(tmp_path: Path) -> None:
    records = [sample_record(i) for i in range(3)]
    folder = write_records(tmp_path / "a", records)
    digests = [digest(folder)]
    assert digests[0] == digest(write_records(tmp_path / "b", records))
    (folder / "unused.png").write_bytes(b"x")
    (folder / "step.json").write_text("{}")
    assert digest(folder) == digests[0]
    image = folder / "images" / "00001_0.png"
    image.write_bytes(image.read_bytes() + b"\0")
    digests.append(digest(folder))
    image.unlink()
    digests.append(digest(folder))
    (folder / "records.jsonl").write_bytes(b"".join(lines(folder)[:-1]))
    digests.append(digest(folder))
    assert len(set(digests)) == 4


def test_order_of_equal_records_is_kept(tmp_path: Path) -> None:
    folder = write_records(tmp_path, [sample_record(i) for i in (4, 2, 9)])
    assert [item.id for item in read_records(folder) if isinstance(item, Record)] == [
        "sample-00004", "sample-00002", "sample-00009",
    ]  # fmt: skip
