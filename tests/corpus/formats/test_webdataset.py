from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from onevision.corpus.formats import Rejected, list_units, webdataset
from onevision.corpus.formats.conversation import CAPTION_PROMPTS
from onevision.corpus.record import Record
from onevision.errors import InputError
from onevision.recipe import DataRecipe
from tests.corpus.formats.sources import EN, ZH, jpeg, pack, read, texts, write_tar, write_webdataset


def recipe(source: Path, **options: Any) -> DataRecipe:
    return DataRecipe(source=str(source), format="webdataset", **options)


def sample(k: int) -> list[tuple[str, bytes]]:
    return [("jpg", jpeg(k)), ("txt", EN.format(k).encode())]


def test_packs_captions_and_conversations(tmp_path: Path) -> None:
    write_webdataset(tmp_path)
    records = read(recipe(tmp_path))
    captions, packs, talks = records[:4], records[4:20], records[20:]
    assert len(list_units(recipe(tmp_path)).units) == 3
    for i, record in enumerate(packs):
        assert isinstance(record, Record) and record.images == (jpeg(i),)
        assert texts(record) == [("user", f"<>What is in picture {i}?"), ("assistant", EN.format(i))]
    assert [record.id for record in packs[3:6]] == [f"pretrain-000000/ps_{k}" for k in ("0/3", "1/0", "2/0")]
    for i, record in enumerate(captions):
        language, caption = ("zh", ZH) if i % 2 else ("en", EN)
        assert isinstance(record, Record) and record.images == (jpeg(i + 20),) and record.language == language
        assert texts(record) == [("user", "<>" + CAPTION_PROMPTS[language]), ("assistant", caption.format(i))]
        assert (record.id, record.source) == (f"captions-000000/{i:04d}", tmp_path.name)
    for i, record in enumerate(talks):
        assert isinstance(record, Record) and record.images == (jpeg(i + 30),) and record.category == "instruct"
        assert texts(record) == [("user", "<>What?"), ("assistant", EN.format(i))]


def test_images_of_a_sample_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    files = [(f"a.{k}.jpg", jpeg(k)) for k in (10, 9, 0, 1)] + [("a.json", json.dumps({"messages": turns}).encode())]
    write_tar(tmp_path / "x.tar", files)
    (record,) = read(recipe(tmp_path))
    assert isinstance(record, Record) and record.images == tuple(jpeg(k) for k in (0, 1, 9, 10))


def test_a_dot_in_the_name_of_a_folder_does_not_join_its_samples(tmp_path: Path) -> None:
    files = [(f"./coyo-1.0/{k}.{name}", content) for k in range(3) for name, content in sample(k)]
    files.insert(1, ("./coyo-1.0/._0.jpg", b"left by macOS"))
    write_tar(tmp_path / "x.tar", files)
    records = read(recipe(tmp_path))
    assert [record.id for record in records] == [f"x/coyo-1.0/{k}" for k in range(3)]
    assert [record.images for record in records if isinstance(record, Record)] == [(jpeg(k),) for k in range(3)]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    write_tar(source / "a.tar", [(f"0.{name}", content) for name, content in sample(0)])
    write_tar(elsewhere / "deep/b.tar", [(f"0.{name}", content) for name, content in sample(1)])
    (source / "more").symlink_to(elsewhere)
    (elsewhere / "deep/back").symlink_to(elsewhere)
    assert [unit.file for unit in list_units(recipe(source)).units] == ["a.tar", "more/deep/b.tar"]
    assert len(read(recipe(source))) == 2


def test_linked_files_count_by_their_own_names(tmp_path: Path) -> None:
    blob, link = tmp_path / "blobs/0a1b", tmp_path / "snapshots/9f/coyo/0.tar"  # as Hugging Face's cache has them
    write_tar(blob, [(f"0.{name}", content) for name, content in sample(0)])
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    for source in (tmp_path / "snapshots", link.parent, link):
        (record,) = read(recipe(source))
        assert isinstance(record, Record) and record.source == "coyo"
    link.with_name("1.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"1\.tar cannot be read: No such file"):
        list_units(recipe(tmp_path / "snapshots"))


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (_, image), (_, text) = sample(0)
    fields = json.dumps({"caption": text.decode()}).encode()
    members = [
        ("0.jpg", image),
        ("0.txt", codecs.BOM_UTF8 + text),
        ("1.jpg", image),
        ("1.json", codecs.BOM_UTF8 + fields),
    ]
    write_tar(tmp_path / "x.tar", members)
    records = read(recipe(tmp_path))
    assert [texts(record)[1] for record in records] == [("assistant", text.decode())] * 2


def test_a_cut_tar_keeps_what_came_before(tmp_path: Path) -> None:
    write_webdataset(tmp_path)
    path = tmp_path / "pretrain-000000.tar"
    whole, data = read(recipe(path)), path.read_bytes()
    counts = set()
    content = -(-len(data.rstrip(b"\0")) // 512) * 512  # without the blocks of zeros at the end
    for end in range(content, 0, -len(data) // 97):
        path.write_bytes(data[:end])
        found = read(recipe(path))
        *kept, last = found
        assert isinstance(last, Rejected) and last.reason == "tar_unreadable" and "\n" not in last.detail
        assert kept == whole[: len(kept)]
        counts.add(len(kept))
    assert counts == {0, 4, 5}  # the last pack is never known to be whole
    path.write_bytes(data[: content + 512])
    assert read(recipe(path)) == whole  # one block of zeros is an end as well


def test_samples_that_cannot_be_used(tmp_path: Path) -> None:
    files = [
        ("a.jpg", jpeg(0)), ("a.json", b"{"), ("b.txt", b"text alone"), ("c.jpg", jpeg(1)), ("c.txt", b"\xff"),
        ("d.jpg", jpeg(2)), ("d.png", jpeg(2)), ("d.txt", b"two"), ("e.jpg", jpeg(3)), ("f.jpg", jpeg(4)),
        ("f.json", b"[]"), ("g.jpg", jpeg(5)), ("g.txt", b"good"), *pack("h", [6, 7])[1:],
    ]  # fmt: skip
    write_tar(tmp_path / "x.tar", files)
    found = read(recipe(tmp_path))
    assert [(item.id, item.reason) for item in found if isinstance(item, Rejected)] == [
        ("x/a", "bad_json"), ("x/b", "image_count"), ("x/c", "not_utf8"), ("x/d", "image_count"), ("x/e", "no_caption"),
        ("x/f", "bad_field"), ("x/h/0", "image_missing"),
    ]  # fmt: skip
    assert [item.id for item in found if isinstance(item, Record)] == ["x/g", "x/h/1"]


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_file_that_is_no_tar_is_one_reject(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    (item,) = read(recipe(tmp_path))
    assert isinstance(item, Rejected) and item.reason == "tar_unreadable"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \*\.tar"):
        list_units(recipe(tmp_path))
    write_webdataset(tmp_path)
    unit = list_units(recipe(tmp_path)).units[0]
    (tmp_path / unit.file).unlink()
    with pytest.raises(InputError, match=r"captions-000000\.tar cannot be read: No such file"):
        list(webdataset.read_unit(recipe(tmp_path), unit))
