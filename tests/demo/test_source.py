"""The records folders: readable, deterministic, licensed, small, and held-out content apart from training's."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from onevision.corpus.formats.records import read_records
from onevision.corpus.record import Record
from onevision.data.template import encode
from onevision.data.tokenizer import load_tokenizer
from onevision.demo.source import CATEGORIES, build_source
from onevision.errors import InputError
from onevision.fingerprint import bytes_digest, folder_digest
from tests.demo.conftest import HELDOUT, SEED, TRAIN

MIN_PIXELS = 56 * 56


def records(folder: Path) -> list[Record]:
    found = list(read_records(folder))
    assert all(isinstance(record, Record) for record in found), found
    return [record for record in found if isinstance(record, Record)]


def answers(record: Record) -> list[str]:
    return [message.text for message in record.messages if message.role == "assistant"]


def test_every_record_is_read_back(source: Path) -> None:
    for split, counts in (("train", TRAIN), ("heldout", HELDOUT)):
        found = records(source / split)
        assert Counter(record.category for record in found) == counts
        assert len({record.id for record in found}) == len(found)
        assert all(record.id.startswith(f"{split}-{record.category}-") for record in found)


def test_same_seed_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    again = build_source(tmp_path / "again", SEED, TRAIN, HELDOUT)
    other = build_source(tmp_path / "other", SEED + 1, TRAIN, HELDOUT)
    for split in ("train", "heldout"):
        assert folder_digest(again.folder / split) == folder_digest(source / split)
        assert folder_digest(other.folder / split) != folder_digest(source / split)
    assert build_source(tmp_path / "again", SEED, TRAIN, HELDOUT).skipped


def test_a_record_does_not_depend_on_the_others(source: Path, tmp_path: Path) -> None:
    few = build_source(tmp_path / "few", SEED, {"ocr": 3, "digits": 5}, {"ocr": 2})
    expected = {record.id: record for record in records(source / "train")}
    found = records(few.folder / "train")
    assert len(found) == 8
    assert all(record == expected[record.id] for record in found)


def test_unknown_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown category 'maps' .* digits, photos"):
        build_source(tmp_path / "source", SEED, {"maps": 3}, {})
    assert not (tmp_path / "source").exists()


def test_no_heldout_image_is_trained_on(source: Path) -> None:
    seen = {bytes_digest(image) for record in records(source / "train") for image in record.images}
    held = [bytes_digest(image) for record in records(source / "heldout") for image in record.images]
    assert len(held) > 100
    assert not seen & set(held)


def test_shapes_of_the_conversations(source: Path) -> None:
    train = records(source / "train")
    assert {len(record.images) for record in train} == {0, 1, 2, 3}
    assert {len(answers(record)) for record in train} == {1, 2, 3}
    assert {record.category for record in train if not record.images} == {"text"}
    assert all(len(answer.split()) <= 3 for record in train for answer in answers(record))
    share = sum(record.language == "zh" for record in train) / len(train)
    assert 0.18 < share < 0.32


def test_chinese_records_ask_in_chinese(source: Path) -> None:
    for record in records(source / "train"):
        questions = [message.text for message in record.messages if message.role == "user"]
        chinese = [any("\u4e00" <= sign <= "\u9fff" for sign in question) for question in questions]
        assert chinese == [record.language == "zh"] * len(questions), record.id


def test_questions_are_from_a_closed_set(source: Path) -> None:
    """So that the best constant answer to a question is a fair measure of chance."""
    asked: dict[str, set[str]] = {category: set() for category in CATEGORIES}
    for record in records(source / "train"):
        asked[record.category] |= {message.text for message in record.messages if message.role == "user"}
    asked["text"] = {"".join("#" if sign.isdigit() else sign for sign in question) for question in asked["text"]}
    assert all(2 <= len(questions) <= 16 for questions in asked.values()), asked


def test_no_answer_follows_from_the_one_before(source: Path) -> None:
    pairs = [
        (int(before), int(after))
        for record in records(source / "train")
        if record.category == "counting"
        for before, after in zip(answers(record), answers(record)[1:], strict=False)
    ]
    assert len(pairs) > 40
    steps = Counter((after - before) % 6 for before, after in pairs)
    assert steps.most_common(1)[0][1] < 0.4 * len(pairs)


def test_images_are_small_and_of_many_shapes(source: Path) -> None:
    sizes = set()
    for record in records(source / "train"):
        for data in record.images:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                sizes.add(image.size)
                assert image.format == ("JPEG" if record.category == "photos" else "PNG")
    assert all(MIN_PIXELS <= width * height <= 16 * 28 * 28 for width, height in sizes), sizes
    assert len(sizes) > 20
    assert any(width % 28 or height % 28 for width, height in sizes)
    assert {width > height for width, height in sizes} == {True, False}


def test_samples_are_cheap(source: Path, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    lengths = []
    for record in records(source / "train"):
        pads = []
        for data in record.images:
            with Image.open(io.BytesIO(data)) as image:
                pads.append(-(-image.width // 28) * -(-image.height // 28))
        lengths.append(len(encode(record, tokenizer, pads).ids))
    assert max(lengths) <= 160
    assert sum(lengths) / len(lengths) < 100


def test_every_record_states_source_and_licence(source: Path) -> None:
    free = {"CC-BY-4.0", "CC-BY-2.0", "CC0-1.0", "LicenseRef-public-domain", "Apache-2.0", "Bitstream-Vera"}
    for record in records(source / "train"):
        assert set(record.license.split(" AND ")) <= free
        assert record.source
    summary = build_source(source, SEED, TRAIN, HELDOUT).summary["train"]
    assert summary["by_license"].keys() <= free
    assert summary["by_category"] == TRAIN
    assert summary["records"] == sum(TRAIN.values())
    assert not any(";" in name for name in summary["by_source"])
