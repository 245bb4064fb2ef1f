"""The weights of a bundle: an export of this very checkpoint that is there already, or one that is made for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.convert.exporting import RECORDS, SETTINGS, export_inputs
from onevision.convert.tensors import SafetensorsFolder
from onevision.errors import OneVisionError
from onevision.files import read_json
from onevision.fingerprint import file_digest, value_digest
from onevision.recipe import DataRecipe


@dataclass(frozen=True)
class Weights:
    """A folder as `make export` writes it: its step.json, and the names of the model's files and of the records."""

    folder: Path
    record: dict[str, Any]
    files: list[str]
    records: list[str]


def existing(folders: Iterable[Path], content: dict[str, Any], data: DataRecipe) -> Weights | None:
    """The first folder that holds an export of the checkpoint with this checkpoint.json, whole."""
    return next((found for folder in folders if (found := _whole(folder, content, data))), None)


def obtain(
    folders: Iterable[Path], content: dict[str, Any], data: DataRecipe, place: Path, export: Callable[[int, Path], None]
) -> Weights:
    """An existing export, or the one that `export(step, place)` makes, goes on with or finds done.

    Raises:
        OneVisionError: as the export.
    """
    found = existing(folders, content, data)
    if found is None:
        export(content["step"], place)
        found = existing([place], content, data)
    assert found is not None, "an export that was made a moment ago is whole"
    return found


def _whole(folder: Path, content: dict[str, Any], data: DataRecipe) -> Weights | None:
    """The export in a folder, if its own digests say that it is this checkpoint's, with this tokenizer, these pixel
    limits and the code of this suite, and if its files are what was written."""
    if not (folder / "step.json").exists():
        return None
    try:
        record = read_json(folder / "step.json")
        if record.get("key") != value_digest(["export", export_inputs(content, data)]):
            return None
        summary, copied = record["summary"], record["inputs"]["copied"]
        source = SafetensorsFolder(folder)  # refuses a file that is cut off
        size = sum(entry.nbytes for entry in source.info.values())
        if (len(source.info), size) != (summary["tensors"], summary["bytes"]):
            return None
        if any(file_digest(folder / name) != digest for name, digest in copied.items()):
            return None
    except (OneVisionError, OSError, KeyError, AttributeError):
        return None
    names = {path.name for path in source.files} | set(copied) | set(SETTINGS)
    missing = [name for name in names if not (folder / name).is_file()]
    return None if missing else Weights(folder, record, sorted(names), [n for n in RECORDS if (folder / n).is_file()])


def place(weights: Weights, bundle: Path) -> None:
    """Put the files of the export into the bundle: the model's at its top, so that it loads as it is, the records into
    export/.

    Weights are hard links where the file system can: the suite replaces an export by a rename and never writes into its
    files, so that a later export leaves the bundle's bytes alone, and 17 GB of 8B need neither time nor room. What
    another program writes into them in place the check of the bundle finds. All other files are copies.
    """
    for name in weights.files:
        link_or_copy(weights.folder / name, bundle / name, links=name.endswith(".safetensors"))
    (bundle / "export").mkdir()
    for name in weights.records:
        shutil.copyfile(weights.folder / name, bundle / "export" / name)


def link_or_copy(source: Path, target: Path, *, links: bool) -> None:
    """A hard link, where that is wanted and can be made; else a copy of the bytes."""
    if links and not source.is_symlink():
        with suppress(OSError):  # another file system, or one without hard links
            os.link(source, target)
    if not target.exists():
        shutil.copyfile(source, target)
