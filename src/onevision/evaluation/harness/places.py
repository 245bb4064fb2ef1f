"""Where results of lmms-eval lie in a run folder.

    RUN/lmms_eval/onevision/step_00003500/mmstar.json       the result of a task
    RUN/lmms_eval/onevision/step_00003500/responses.rank0.jsonl
    RUN/lmms_eval/onevision_exported/step_00003500/…         the same of the exported folder

Task files and the data of the held-out questions stand there too, and may be removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.errors import InputError
from onevision.files import read_record
from onevision.recipe import Recipe
from onevision.recipe_evaluation import evaluated

FOLDER = "lmms_eval"
HELDOUT_DATA = Path("heldout", "test.parquet")  # of the held-out questions, below FOLDER
MODELS = ("onevision", "onevision_exported")


@dataclass(frozen=True)
class TaskRun:
    """What is asked of which model: `exported` is its folder with model="onevision_exported"; `limit` is the number of
    documents a task, 0 for all."""

    run: str
    step: int
    tasks: tuple[str, ...]
    model: str = MODELS[0]
    exported: str = ""
    limit: int = 0

    @property
    def folder(self) -> Path:
        """Where results and responses go. Those of a part of a task are not those of the task."""
        folder = results_folder(self.run, self.model, self.step)
        return folder / f"first_{self.limit}" if self.limit else folder


def results_folder(run: str | Path, model: str, step: int) -> Path:
    """Folder of the results of a step."""
    return Path(run) / FOLDER / model / f"step_{step:08d}"


def result_file(folder: str | Path, task: str) -> Path:
    """The file of a task's result."""
    return Path(folder) / f"{task}.json"


def read_result(path: Path) -> dict[str, Any]:
    """What a result file says.

    Raises:
        InputError: it is missing or was altered.
    """
    return read_record(path, task=str, step=int, metrics=dict, answered=int, failed=int, settings=dict)


def read_results(run: str | Path, model: str = "onevision") -> Iterator[dict[str, Any] | str]:
    """The results of all steps of a run, oldest step first; of one that cannot be read, a line instead."""
    root = Path(run) / FOLDER / model
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if re.fullmatch(r"step_\d{8}", folder.name):
            for path in sorted(folder.glob("*.json")):
                try:
                    yield read_result(path)
                except InputError as error:
                    yield str(error)


def awaited(recipe: Recipe, run: str | Path, step: int) -> bool:
    """Whether a checkpoint has still to answer tasks of its recipe."""
    if not evaluated(recipe.evaluation, step, recipe.train.steps):
        return False
    folder = results_folder(run, MODELS[0], step)
    return not all(result_file(folder, task).exists() for task in recipe.evaluation.tasks)
