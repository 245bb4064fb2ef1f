"""The answers are right, judged from the pixels or the text alone; held-out content is apart by construction."""

from __future__ import annotations

import io
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label
from sklearn.datasets import load_digits

from onevision.corpus.record import Record
from onevision.demo import charts, digits, ocr, photos, tables
from onevision.demo.draw import Draw
from onevision.demo.source import CATEGORIES

SEED = 11


def drawn(category: str, split: str, count: int = 60) -> list[Record]:
    return [CATEGORIES[category](Draw(category, split, index, SEED)) for index in range(count)]


def turns(record: Record) -> list[tuple[str, str]]:
    texts = [message.text for message in record.messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_counted_shapes_are_as_many_as_patches_of_colour(split: str) -> None:
    for record in drawn("counting", split):
        for image, (_, answer) in zip(record.images, turns(record), strict=True):
            shapes = label((pixels(image) != 255).any(axis=2), connectivity=2)
            assert int(answer) == shapes.max()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tallest_bar_and_number_of_bars(split: str) -> None:
    kinds = set()
    for record in drawn("charts", split):
        for image, (question, answer) in zip(record.images, turns(record), strict=True):
            heights = [int((pixels(image) == colour).all(axis=2).sum(axis=0).max()) for colour in charts.COLOURS]
            if question in charts.HOW_MANY[record.language]:
                assert int(answer) == sum(height > 0 for height in heights)
            else:
                assert answer == charts.NAMES[record.language][int(np.argmax(heights))]
            kinds.add(question)
    assert kinds == {text for kind in (charts.HOW_MANY, charts.TALLEST) for texts in kind.values() for text in texts}


def test_columns_of_a_table_and_its_largest_number() -> None:
    for record in drawn("tables", "train"):
        for image, (question, answer) in zip(record.images, turns(record), strict=True):
            if question in tables.COLUMNS[record.language]:
                assert int(answer) == pixels(image).shape[1] // tables.CELL
            else:
                assert int(answer) in tables.LARGEST
    rng = np.random.default_rng(0)
    for rows, columns in tables.SHAPES:
        _, values = tables._values(rng, rows, columns, heldout=True)
        assert values.shape == (rows, columns)
        assert 0 <= values.min() <= values.max() < 10


def test_text_answers_are_the_extremes() -> None:
    sets: dict[str, set[tuple[int, ...]]] = {"train": set(), "heldout": set()}
    for split, seen in sets.items():
        for record in drawn("text", split, 200):
            for question, answer in turns(record):
                numbers = [int(number) for number in re.findall(r"\d", question)]
                assert len(set(numbers)) == 3
                largest = "largest" in question or "最大" in question
                assert int(answer) == (max(numbers) if largest else min(numbers))
                seen.add(tuple(sorted(numbers)))
    assert len(sets["train"]) > 80
    assert len(sets["heldout"]) > 10
    assert not sets["train"] & sets["heldout"]


def test_digit_answers_follow_the_labels() -> None:
    for record in drawn("digits", "train", 150):
        first, *rest = turns(record)
        values = first[1].split()
        assert len(values) in (1, len(record.images))
        for question, answer in rest:
            value = int(values[0])
            if question in digits.PARITY[record.language]:
                assert answer == digits.PARITY_ANSWER[record.language][value % 2]
            elif question in digits.ABOVE_FOUR[record.language]:
                assert answer == digits.YES[record.language][value > 4]
            else:
                assert answer in "0123456789"


def test_heldout_digits_are_other_scans_and_are_only_read() -> None:
    train, heldout = digits._scans(False), digits._scans(True)
    assert len(train[1]) + len(heldout[1]) == len(load_digits().target)
    assert len(heldout[1]) > 250
    assert not {scan.tobytes() for scan in train[0]} & {scan.tobytes() for scan in heldout[0]}
    for record in drawn("digits", "heldout", 100):
        assert all(re.fullmatch(r"\d( \d)*", answer) for _, answer in turns(record))


def test_a_sheet_shows_its_scan() -> None:
    """The nearest scan to a shrunken held-out sheet is, nearly always, the one that was drawn."""
    scans, labels = digits._scans(True)
    rng = np.random.default_rng(3)
    hits = 0
    for number in range(40):
        sheet = digits._sheet(scans[number], rng, moved=False)
        ink = np.asarray(sheet.crop(sheet.point(lambda value: 255 * (value < 200)).getbbox()).resize((8, 8)))
        ours = np.asarray(Image.fromarray(scans[number]))
        columns, rows = np.flatnonzero((ours < 200).any(axis=0)), np.flatnonzero((ours < 200).any(axis=1))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        hits += np.corrcoef(ink.ravel(), np.asarray(Image.fromarray(ours).crop(box).resize((8, 8))).ravel())[0, 1] > 0.8
    assert hits >= 36
    assert len(set(labels)) == 10


def test_regions_of_a_photograph_never_overlap() -> None:
    boxes: dict[str, list[photos.Box]] = {}
    for view in photos.VIEWS:
        boxes.setdefault(view.file, []).extend((view.train, view.heldout))
        width, height = photos._photograph(view.file).size
        for left, top, right, bottom in (view.train, view.heldout):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
    pairs = [pair for regions in boxes.values() for pair in combinations(regions, 2)]
    assert len(pairs) > 20
    for a, b in pairs:
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_crops_are_named_after_their_view() -> None:
    names = {name for view in photos.VIEWS for name in view.names.values()}
    assert len(names) == 2 * len(photos.VIEWS)
    grey = {view.names[language] for view in photos.VIEWS if not view.colour for language in ("en", "zh")}
    for record in drawn("photos", "train"):
        for image, (_, answer) in zip(record.images, turns(record), strict=False):
            assert answer in names
            red, green, blue = pixels(image).reshape(-1, 3).T
            assert (np.abs(red - blue).mean() < 1 and np.abs(red - green).mean() < 1) == (answer in grey)


def test_every_photograph_is_shipped_with_its_package() -> None:
    import skimage
    import sklearn

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    for file in photos.PHOTOGRAPHS:
        assert any((folder / file).is_file() for folder in folders), file
    assert {view.file for view in photos.VIEWS} == set(photos.PHOTOGRAPHS)


def test_heldout_words_are_set_in_other_fonts() -> None:
    for word in range(len(ocr.WORDS)):
        train, heldout = set(ocr.faces_of(word, False)), set(ocr.faces_of(word, True))
        assert train | heldout == set(ocr.FONTS)
        assert not train & heldout
        assert heldout
    assert {answer for record in drawn("ocr", "heldout") for _, answer in turns(record)} == set(ocr.WORDS)


def test_a_word_fits_its_image() -> None:
    """No ink at the left and right edge: nothing is cut off."""
    for record in drawn("ocr", "train"):
        for image in record.images:
            dark = pixels(image).sum(axis=2) < 300
            assert dark.any()
            assert not dark[:, 0].any()
            assert not dark[:, -1].any()
            assert not dark[0].any()
            assert not dark[-1].any()
