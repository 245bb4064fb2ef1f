"""Task files for data that lies on this disk: lmms-eval's own task, read from Parquet files instead of a hub.

A task file that is written here includes the task's own file (prompts, scoring, everything) and replaces where the data
comes from. `DATA` has a folder for each task, or for each part of one that is a group:

    DATA/mmstar/*.parquet                  of the only split that the task reads
    DATA/chartqa/test-*.parquet            or by the name of a split, where there are several

The columns are those of the data set that the task is made for, as its own Parquet files have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onevision.errors import InputError
from onevision.files import write_text
from onevision.fingerprint import file_digest, value_digest
from onevision.recipe_evaluation import HELDOUT_TASK

HELDOUT_FILE = Path(__file__).parent / "heldout_task" / "onevision_heldout.yaml"
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


@dataclass(frozen=True)
class TaskFiles:
    """A folder with the task files of one task; `digests` of the data that they name, by task."""

    folder: Path
    digests: dict[str, str] = field(default_factory=dict)


def write_heldout_task(folder: Path, cache: Path, file: Path, max_new_tokens: int) -> TaskFiles:
    """The task file of the held-out questions that stand in a Parquet file. The `datasets` package keeps what it reads
    in `cache`."""
    values = {"generation_kwargs": {"max_new_tokens": max_new_tokens, "temperature": 0, "do_sample": False}}
    digest = _write(folder / f"{HELDOUT_TASK}.yaml", cache, HELDOUT_FILE, {"test": [file]}, values)
    return TaskFiles(folder, {HELDOUT_TASK: digest})


def write_local_task(folder: Path, cache: Path, task: str, known: Path, data: Path) -> TaskFiles | None:
    """The task files of a standard task, or of the tasks of a group, whose data lies in folders of their names in
    `data`; None where it does not. `known` is the folder of lmms-eval's tasks.

    Raises:
        InputError: there is no such task, only a part of a group's data is there, or a split has no file.
    """
    names = list(leaves(task, known))
    there = [name for name, _ in names if (data / name).is_dir()]
    if not there:
        return None
    if len(there) < len(names):
        absent = [str(data / name) for name, _ in names if name not in there]
        raise InputError(f"{task} is made of {len(names)} tasks, and there is no data for some: {', '.join(absent)}")
    digests = {}
    for name, path in names:
        splits = _splits(path)
        files = {split: split_files(data / name, split, splits) for split in splits}
        digests[name] = _write(folder / f"{name}.yaml", cache, path, files, {})
    if names[0][0] != task:
        group = {key: value for key, value in _values(task_file(task, known)).items() if key != "include"}
        write_text(folder / f"{task}.yaml", yaml.safe_dump(group, allow_unicode=True, sort_keys=False))
    return TaskFiles(folder, digests)


def leaves(task: str, known: Path) -> Iterator[tuple[str, Path]]:
    """The tasks of a group, or the task itself, each with its file.

    Raises:
        InputError: no file has that task.
    """
    path = task_file(task, known)
    parts = _values(path).get("task")
    if isinstance(parts, list):
        for part in parts:
            yield from leaves(part if isinstance(part, str) else part["task"], known)
    else:
        yield task, path


def task_file(task: str, known: Path) -> Path:
    """The file of a task or group of lmms-eval.

    Raises:
        InputError: there is none.
    """
    line = re.compile(rf"^(?:task|group)\s*:\s*[\"']?{re.escape(task)}[\"']?\s*(?:#.*)?$", re.MULTILINE)
    for path in sorted(known.glob("**/*.yaml")):
        if line.search(path.read_text(encoding="utf-8", errors="replace")):
            return path
    for path in sorted(known.glob(f"**/{task}.yaml")):  # the name may stand in a file that it includes
        if _values(path).get("task") == task:
            return path
    raise InputError(f"lmms-eval has no task {task}: lmms-eval --tasks list shows them all")


def split_files(folder: Path, split: str, splits: list[str]) -> list[Path]:
    """The Parquet files of a split of a task that reads `splits`.

    Raises:
        InputError: there are none.
    """
    files = sorted(path for path in folder.glob("*.parquet") if re.match(rf"{re.escape(split)}\b", path.name))
    if not files and len(splits) == 1:
        files = sorted(folder.glob("*.parquet"))
    if not files:
        raise InputError(f"{folder} has no Parquet files of split {split}: name them {split}*.parquet")
    return files


def _write(file: Path, cache: Path, base: Path, data: dict[str, list[Path]], more: dict[str, Any]) -> str:
    """Write a task file that includes `base`; returns the digest of its data."""
    values = {
        "include": str(base.absolute()),
        "task": file.stem,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: [str(path.absolute()) for path in paths] for split, paths in data.items()},
            "cache_dir": str(cache.absolute()),
        },
        **more,
    }
    write_text(file, yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
    return value_digest({split: [file_digest(path) for path in paths] for split, paths in data.items()})


class _Loader(yaml.SafeLoader):
    """YAML whose functions are names: they are not imported."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def _values(path: Path) -> dict[str, Any]:
    """A task file with those that it includes."""
    values: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    included = values.pop("include", None)
    for name in [included] if isinstance(included, str) else included or []:
        values = _values(path.parent / name) | values
    return values


def _splits(path: Path) -> list[str]:
    values = _values(path)
    return list(dict.fromkeys(str(values[key]) for key in SPLITS if values.get(key)))
