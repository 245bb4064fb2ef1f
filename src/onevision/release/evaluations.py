"""Evaluations of a checkpoint, known by its fingerprint wherever they lie, and the results of lmms-eval."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.errors import InputError
from onevision.evaluation.harness.places import FOLDER, MODELS
from onevision.files import read_json, read_json_lines, write_json, write_text

KEPT = ("row", "turn", "id", "category", "language", "output", "correct")  # of answers.jsonl: no question, no answer


@dataclass(frozen=True)
class HeldOut:
    """An evaluation folder with its step.json."""

    folder: Path
    record: dict[str, Any]


def held_out(run: Path, fingerprint: str) -> HeldOut | None:
    """The evaluation of a checkpoint on held-out questions: in RUN/evaluation, or in another folder in the run or
    beside it, whose step.json says that it asked this checkpoint."""
    for folder in (run / "evaluation", *_folders(run), *_folders(run.resolve().parent)):
        path = folder / "step.json"
        if not path.is_file() or not (folder / "answers.jsonl").is_file():
            continue
        try:
            record = read_json(path)
        except InputError:
            continue
        if (
            isinstance(record, dict)
            and record.get("step") == "evaluate"
            and record.get("inputs", {}).get("checkpoint") == fingerprint
        ):
            return HeldOut(folder, record)
    return None


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def task_files(run: Path) -> list[tuple[str, Path]]:
    """Results of lmms-eval of all steps, by their names in the bundle's evaluation/; also those of parts of a task."""
    found = []
    for model in MODELS:
        root = run / FOLDER / model
        for path in sorted(root.glob("step_*/*.json")) + sorted(root.glob("step_*/first_*/*.json")):
            found.append((f"lmms_eval/{path.relative_to(run / FOLDER).as_posix()}", path))
    return found


def write_held_out(found: HeldOut, folder: Path) -> None:
    """Write the record, and of every answer what the model said; questions and right answers are data."""
    write_json(folder / "step.json", found.record)
    lines = []
    for row in read_json_lines(found.folder / "answers.jsonl"):
        lines.append(json.dumps({key: row[key] for key in KEPT if key in row}, ensure_ascii=False) + "\n")
    write_text(folder / "answers.jsonl", "".join(lines))
