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

from onevision.corpus.record import Record, record_fields
from onevision.demo.charts import charts_record, tables_record
from onevision.demo.counting import counting_record
from onevision.demo.digits import digits_record
from onevision.demo.draw import Draw
from onevision.demo.ocr import ocr_record
from onevision.demo.photos import photos_record
from onevision.demo.text import text_record
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
TRAIN = {"digits": 1800, "photos": 500, "charts": 500, "tables": 600, "ocr": 700, "counting": 450, "text": 500}
HELDOUT = {"digits": 140, "photos": 80, "charts": 80, "tables": 80, "ocr": 80, "counting": 80, "text": 80}
PACKAGES = ("scikit-learn", "scikit-image", "matplotlib", "pillow", "numpy")


def build_source(
    output: Path, seed: int, train: Mapping[str, int] = TRAIN, heldout: Mapping[str, int] = HELDOUT
) -> StepResult:
    """Write `output/train` and `output/heldout`: so many records of each category.

    The same arguments give the same bytes, with the same versions of the packages that ship the data.
    Summary: per split the number of records, images and turns, and records by category, language, licence and source.

    Raises:
        StorageError: the disk is full.
    """
    splits = {"train": dict(train), "heldout": dict(heldout)}
    inputs = {
        "seed": seed,
        "splits": splits,
        "packages": {name: version(name) for name in PACKAGES},
        "code": folder_digest(Path(__file__).parent, "*.py"),
    }

    def build(folder: Path) -> dict[str, Any]:
        return {split: _write(folder / split, _records(split, counts, seed)) for split, counts in splits.items()}

    return run_step("demo-source", output, inputs, build)


def _records(split: str, counts: Mapping[str, int], seed: int) -> Iterable[Record]:
    for category, count in counts.items():
        for index in range(count):
            yield CATEGORIES[category](Draw(category, split, index, seed))


def _write(folder: Path, records: Iterable[Record]) -> dict[str, Any]:
    (folder / "images").mkdir(parents=True)
    totals = {"records": 0, "images": 0, "turns": 0}
    by: dict[str, Counter[str]] = {name: Counter() for name in ("category", "language", "license", "source")}
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
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
            for name, counter in by.items():
                counter[getattr(record, name)] += 1
    return {**totals, **{f"by_{name}": dict(sorted(counter.items())) for name, counter in by.items()}}
