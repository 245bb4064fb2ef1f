"""The demo's input as two records folders: `train` and `heldout`.

A records folder holds `records.jsonl`, one record a line, and the image files it names, relative to itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onevision.corpus.formats.records import RECORDS
from onevision.corpus.record import Record, record_fields
from onevision.demo.charts import charts_record
from onevision.demo.counting import counting_record
from onevision.demo.digits import digits_record
from onevision.demo.draw import LICENSES, SOURCES, Draw
from onevision.demo.ocr import ocr_record
from onevision.demo.photos import photos_record
from onevision.demo.tables import tables_record
from onevision.demo.text import text_record
from onevision.errors import InputError
from onevision.fingerprint import folder_digest
from onevision.steps import StepResult, run_step

CATEGORIES: dict[str, Callable[[Draw], Record]] = {
    "digits": digits_record,
    "photos": photos_record,
    "charts": charts_record,
    "tables": tables_record,
    "ocr": ocr_record,
    "counting": counting_record,
    "text": text_record,
}
# Records of each category.
TRAIN = {
    "digits": 2600,
    "photos": 550,
    "charts": 450,
    "tables": 350,
    "ocr": 600,
    "counting": 450,
    "text": 450,
}
HELDOUT = {**dict.fromkeys(CATEGORIES, 80), "digits": 180}
# How the values of a field are joined in one record.
SEPARATORS = {"category": "\n", "language": "\n", "license": LICENSES, "source": SOURCES}
PACKAGES = ("scikit-learn", "scikit-image", "matplotlib", "pillow", "numpy")


def build_source(
    output: Path, seed: int, train: Mapping[str, int] = TRAIN, heldout: Mapping[str, int] = HELDOUT
) -> StepResult:
    """Write `output/train` and `output/heldout`: so many records of each category.

    The same arguments give the same bytes, with the same versions of the packages that ship the data and draw.
    Summary: for each split the number of records, images and turns, and in how many records each category,
    language, license and source takes part.

    Raises:
        InputError: a category that is not one of `CATEGORIES`.
        StorageError: the disk is full.
    """
    for category in {**train, **heldout}:
        if category not in CATEGORIES:
            raise InputError(f"unknown category {category!r} of the demo; it has {', '.join(CATEGORIES)}")
    splits = {"train": dict(train), "heldout": dict(heldout)}
    inputs = {
        "seed": seed,
        "splits": splits,
        "packages": {name: version(name) for name in PACKAGES},
        "code": folder_digest(Path(__file__).parent, "*.py"),
    }

    def build(folder: Path) -> dict[str, Any]:
        return {name: _write(folder / name, _records(name, counts, seed)) for name, counts in splits.items()}

    return run_step("demo-source", output, inputs, build)


def _records(split: str, counts: Mapping[str, int], seed: int) -> Iterable[Record]:
    for category, count in counts.items():
        for index in range(count):
            yield CATEGORIES[category](Draw(category, split, index, seed))


def _write(folder: Path, records: Iterable[Record]) -> dict[str, Any]:
    (folder / "images").mkdir(parents=True)
    totals = {"records": 0, "images": 0, "turns": 0}
    by: dict[str, Counter[str]] = {name: Counter() for name in SEPARATORS}
    with (folder / RECORDS).open("w", encoding="utf-8") as file:
        for record in records:
            names = []
            for number, image in enumerate(record.images):
                suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
                names.append(f"images/{record.id}-{number}.{suffix}")
                (folder / names[-1]).write_bytes(image)
            fields = {**record_fields(record), "images": names}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
            totals["records"] += 1
            totals["images"] += len(names)
            totals["turns"] += sum(message.role == "assistant" for message in record.messages)
            for name, separator in SEPARATORS.items():
                by[name].update(getattr(record, name).split(separator))
    return {**totals, **{f"by_{name}": dict(sorted(counter.items())) for name, counter in by.items()}}
