from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from onevision.corpus.formats import Rejected, list_units, parquet
from onevision.corpus.formats.conversation import CAPTION_PROMPTS
from onevision.corpus.record import Record
from onevision.errors import InputError
from onevision.recipe import DataRecipe
from tests.corpus.formats.sources import EN, ZH, jpeg, read, texts, write_parquet, write_table


def recipe(source: Path, **options: Any) -> DataRecipe:
    return DataRecipe(source=str(source), format="parquet", **{"shard_samples": 8, **options})


def test_the_released_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    records = read(recipe(tmp_path))
    order = [*range(20, 26), *range(20), *range(26, 33)]  # by the names of the files
    assert [record.id.rpartition("-")[2] for record in records] == [str(i) for i in order]
    for i, record in zip(order, records, strict=True):
        language, caption = ("zh", ZH) if 20 <= i < 26 else ("en", EN)
        assert texts(record) == [("user", "<>" + CAPTION_PROMPTS[language]), ("assistant", caption.format(i))]
        assert isinstance(record, Record) and record.images == (jpeg(i),)
        assert (record.language, record.category) == (language, "caption")
        assert record.source == ("sa1b" if i >= 26 else "coyo") and record.license == "unknown"


def test_image_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    tables = [pq.read_table(path) for path in sorted(tmp_path.rglob("*.parquet"))]
    stored = [row["bytes"] for table in tables for row in table["image"].to_pylist()]
    found = [record.images[0] for record in read(recipe(tmp_path)) if isinstance(record, Record)]
    assert [hashlib.sha256(image).digest() for image in found] == [hashlib.sha256(image).digest() for image in stored]


@pytest.mark.parametrize("most,units", [(8, 6), (4, 10), (1, 10), (100, 4)])
def test_units_are_row_groups_of_one_file(tmp_path: Path, most: int, units: int) -> None:
    write_parquet(tmp_path)
    listing = list_units(recipe(tmp_path, shard_samples=most))
    assert len(listing.units) == units
    assert read(recipe(tmp_path, shard_samples=most)) == read(recipe(tmp_path, shard_samples=100))
    assert all(unit.last - unit.first < max(most, 4) for unit in listing.units)


def test_a_part_of_the_layout_keeps_source_and_language(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    for folder in ("coyo/CN", "coyo/CN/part00", "coyo/CN/part00/0000.parquet"):
        records = read(recipe(tmp_path / folder))
        assert all(isinstance(record, Record) for record in records) and len(records) == 6
        assert {(record.source, record.language) for record in records} == {("coyo", "zh")}  # type: ignore[union-attr]


def test_linked_files_count_by_their_own_names(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    link = tmp_path / "snapshots/9f/laion/CN/0.parquet"  # as Hugging Face's cache has them
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "coyo/EN/part00/0000.parquet")
    for source in (tmp_path / "snapshots", link.parent, link):
        records = read(recipe(source))
        assert {(record.source, record.language) for record in records} == {("laion", "zh")}  # type: ignore[union-attr]
    link.with_name("1.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"1\.parquet cannot be read: No such file"):
        list_units(recipe(tmp_path / "snapshots"))


@pytest.mark.parametrize(
    "columns,options",
    [
        ({"jpg": [jpeg(0)], "text": ["A caption."]}, {}),
        ({"images": [[{"bytes": jpeg(0)}]], "captions": [["A caption."]]}, {}),
        ({"image": [[jpeg(0)]], "caption": ["A caption."], "id": [17]}, {}),
        ({"a": [jpeg(0)], "b": ["A caption."], "caption": ["no"]}, {"columns": ["image=a", "caption=b"]}),
    ],
)
def test_other_columns(tmp_path: Path, columns: dict[str, Any], options: dict[str, Any]) -> None:
    write_table(tmp_path / "web" / "x.parquet", columns)
    (record,) = read(recipe(tmp_path, **options))
    assert isinstance(record, Record) and record.images == (jpeg(0),)
    assert texts(record)[1] == ("assistant", "A caption.")
    assert record.id == ("17" if "id" in columns else "web/x/0") and (record.source, record.language) == ("web", "en")


def test_conversations_with_none_one_or_many_images(tmp_path: Path) -> None:
    turn = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    columns = {
        "image": [None, [], [jpeg(0)], [jpeg(0), jpeg(1)]],
        "conversations": [turn] * 4,
        "data_source": ["x", "y", None, "z"],
    }
    write_table(tmp_path / "set.parquet", columns)
    records = read(recipe(tmp_path))
    assert [texts(record)[0][1] for record in records] == ["Q", "Q", "<>Q", "<><>Q"]
    assert [record.source for record in records if isinstance(record, Record)] == ["x", "y", tmp_path.name, "z"]


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    columns = {
        "id": ["none", "empty", "mute", "good"],
        "image": [{"bytes": None}, {"bytes": b""}, {"bytes": jpeg(0)}, {"bytes": jpeg(1)}],
        "caption": ["a", "b", None, "c"],
    }
    write_table(tmp_path / "x.parquet", columns)
    found = read(recipe(tmp_path))
    assert [(item.id, item.reason) for item in found if isinstance(item, Rejected)] == [
        ("none", "image_missing"), ("empty", "image_missing"), ("mute", "no_caption"),
    ]  # fmt: skip
    assert isinstance(found[3], Record)


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    path = tmp_path / "coyo" / "EN" / "part01" / "0000.parquet"
    whole = read(recipe(path))
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = bytes(40)
    path.write_bytes(data)
    found = read(recipe(path))
    assert found[:4] == whole[:4] and found[8:] == whole[8:] and len(found) == 11
    assert [item.reason for item in found[4:8] if isinstance(item, Rejected)] == ["parquet_unreadable"] * 4
    assert all(isinstance(item, Rejected) and "\n" not in item.detail for item in found[4:8])


def test_a_cut_file_is_one_reject_and_the_others_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    path = tmp_path / "coyo" / "EN" / "part01" / "0000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    found = read(recipe(tmp_path))
    rejected = [item for item in found if isinstance(item, Rejected)]
    assert len(found) == 23 and [(item.id, item.reason) for item in rejected] == [
        ("coyo/EN/part01/0000", "file_unreadable")
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \*\.parquet"):
        list_units(recipe(tmp_path))
    write_table(tmp_path / "x.parquet", {"picture": [b"x"], "legend": ["y"]})
    with pytest.raises(InputError, match="no column of captions or conversations; it has picture, legend"):
        list_units(recipe(tmp_path))
    with pytest.raises(InputError, match="no column of images; it has picture, legend"):
        list_units(recipe(tmp_path, columns=["caption=legend"]))
    with pytest.raises(InputError, match="has no column 'z'"):
        list_units(recipe(tmp_path, columns=["caption=z"]))
    data = recipe(tmp_path, columns=["caption=legend", "image=picture"])
    (unit,) = list_units(data).units
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(InputError, match=r"x\.parquet cannot be read: No such file"):
        list(parquet.read_unit(data, unit))


def test_digest_follows_names_sizes_and_row_groups(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    digests = [list_units(recipe(tmp_path)).digest]
    assert list_units(recipe(tmp_path)).digest == digests[0]
    path = tmp_path / "coyo" / "EN" / "part01" / "0000.parquet"
    path.rename(path.with_name("1.parquet"))
    digests.append(list_units(recipe(tmp_path)).digest)
    path.with_name("1.parquet").rename(path)
    pq.write_table(pq.read_table(path), path, row_group_size=5)
    digests.append(list_units(recipe(tmp_path)).digest)
    path.unlink()
    digests.append(list_units(recipe(tmp_path)).digest)
    assert len(set(digests)) == 4
