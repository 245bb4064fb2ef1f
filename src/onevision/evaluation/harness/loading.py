"""Tasks and their data, before any question is asked: what is wrong with one is told before a model is loaded."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmms_eval.tasks
import numpy as np
import torch
from lmms_eval.evaluator_utils import get_task_list
from lmms_eval.tasks import TaskManager, get_task_dict

import onevision.evaluation.harness.library  # noqa: F401  (sets back what lmms-eval changes)
from onevision.errors import InputError, OneVisionError, line_of
from onevision.evaluation.harness.heldout import write_heldout
from onevision.evaluation.harness.places import FOLDER, HELDOUT_DATA, TaskRun
from onevision.evaluation.harness.published import JUDGE_KEY, JUDGED
from onevision.evaluation.harness.tasks import TaskFiles, write_heldout_task, write_local_task
from onevision.recipe import EvaluationRecipe
from onevision.recipe_evaluation import HELDOUT_TASK

KNOWN = Path(lmms_eval.tasks.__file__).parent


@dataclass(frozen=True)
class Loaded:
    """A task as lmms-eval has loaded it: what it scores, its parts by name, and digests of data by part where it lies
    on this disk."""

    task_dict: dict[Any, Any]
    parts: dict[str, Any]
    digests: dict[str, str]


def load_tasks(evaluation: EvaluationRecipe, asked: TaskRun) -> dict[str, Loaded]:
    """The tasks by name, in their order.

    Raises:
        InputError: one of them is not there, cannot be loaded, or asks for something else than text.
    """
    return {task: _load(task, _files(evaluation, asked, task)) for task in asked.tasks}


def seed() -> None:
    """Seed what tasks may draw from, as lmms-eval's own `simple_evaluate` does: before a task is loaded, and before its
    requests are made, so that every rank makes the same ones."""
    for number, draw in ((0, random.seed), (1234, np.random.seed), (1234, torch.manual_seed)):
        draw(number)


def requests_of(loaded: Loaded, limit: int) -> Sequence[Any]:
    """All that a task asks, in the order in which `evaluate` asks it; `limit` documents of each part, 0: all."""
    requests = []
    for part in loaded.parts.values():
        part.build_all_requests(limit=limit or None, rank=0, world_size=1)
        requests += [request for request in part.instances for _ in range(request.repeats)]
    return requests


def _files(evaluation: EvaluationRecipe, asked: TaskRun, task: str) -> TaskFiles | None:
    """The task files of data on this disk; None for a task whose data lmms-eval finds by itself."""
    root, folder = Path(asked.run) / FOLDER, asked.folder / "tasks" / task
    if task == HELDOUT_TASK:
        write_heldout(evaluation.corpus, (root / HELDOUT_DATA).parent)
        return write_heldout_task(folder, root / "cache", root / HELDOUT_DATA, evaluation.max_new_tokens)
    if not evaluation.data:
        return None
    return write_local_task(folder, root / "cache", task, KNOWN, Path(evaluation.data))


def _load(task: str, files: TaskFiles | None) -> Loaded:
    """Load a task and its data, as lmms-eval's own `simple_evaluate` prepares them.

    Raises:
        InputError: it cannot be loaded, or asks for something else than text.
    """
    if task in JUDGED and not os.environ.get(JUDGE_KEY):
        raise InputError(f"task {task} is scored by a judge: set {JUDGE_KEY}; without it every answer would be wrong")
    seed()
    where = str(files.folder) if files else None
    try:
        manager = TaskManager("ERROR", include_path=where, include_defaults=files is None, model_name="onevision")
        if task not in manager.all_tasks:
            raise InputError(f"lmms-eval has no task {task}: lmms-eval --tasks list shows them all")
        task_dict = get_task_dict([task], manager, "chat")
    except OneVisionError:
        raise
    except Exception as error:
        raise InputError(f"task {task} cannot be loaded: {line_of(error)}") from error
    parts = {output.task_name: output.task for output in get_task_list(task_dict)}
    for name, part in parts.items():
        if part.OUTPUT_TYPE != "generate_until":
            raise InputError(f"task {name} asks for {part.OUTPUT_TYPE}: these models answer with text, in one turn")
        if part.get_config("num_fewshot") is None:
            part.set_config("num_fewshot", 0)
    return Loaded(task_dict, parts, files.digests if files else {})
