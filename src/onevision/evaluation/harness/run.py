"""Tasks of lmms-eval -> a result file each: score, what failed, settings, versions, and what is published beside it.

Each rank answers its share of a task's questions; the first one scores them, task by task, so that a task whose scorer
fails (no key of its judge, no data) takes no other task's result along.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmms_eval.api.task
import lmms_eval.evaluator
import lmms_eval.tasks
import numpy as np
import torch
from lmms_eval.evaluator import evaluate
from lmms_eval.evaluator_utils import get_task_list
from lmms_eval.tasks import TaskManager, get_task_dict
from rich.console import Console
from rich.table import Table

from onevision.errors import DataError, InputError, OneVisionError, printable
from onevision.evaluation.harness.heldout import write_heldout
from onevision.evaluation.harness.keeping import Keeping
from onevision.evaluation.harness.places import FOLDER, HELDOUT_DATA, MODELS, TaskRun, result_file
from onevision.evaluation.harness.published import TASKS, beside, score
from onevision.evaluation.harness.quiet import quiet
from onevision.evaluation.harness.sharing import Share, not_launched
from onevision.evaluation.harness.tasks import TaskFiles, write_heldout_task, write_local_task
from onevision.files import write_json
from onevision.machine import commit, version
from onevision.recipe import Recipe
from onevision.recipe_evaluation import HELDOUT_TASK

KNOWN = Path(lmms_eval.tasks.__file__).parent
PACKAGES = ("lmms_eval", "torch", "transformers", "datasets", "tokenizers", "pillow", "numpy", "megatron-core")
SHOWN_FAILURES = 20  # in a result file; the responses have all
WIDTH = 110  # columns of the table


@dataclass(frozen=True)
class Loaded:
    """A task as lmms-eval has loaded it: what it scores, and its parts by name."""

    task_dict: dict[Any, Any]
    parts: dict[str, Any]


def run_tasks(recipe: Recipe, asked: TaskRun, share: Share, local_rank: int) -> list[dict[str, Any]]:
    """Answer and score tasks; the first rank returns their results, the others nothing.

    Raises:
        InputError: there is no such task, checkpoint or folder, or its data is not there.
        DataError: more of a task's questions failed than `evaluation.max_failed`, or a task could not be scored. The
            results are written.
    """
    quiet(lmms_eval.evaluator, lmms_eval.api.task)
    files = {task: _files(recipe, asked, task) for task in asked.tasks} if share.rank == 0 else {}
    share.done()
    share.wait_for_others()  # what the first rank has written is read by all
    if share.rank:
        files = {task: _files(recipe, asked, task) for task in asked.tasks}
    model = _model(recipe, asked, share, local_rank)
    results = []
    for task in asked.tasks:
        began = time.monotonic()
        loaded = _load(task, files[task], model)
        if share.rank:
            model.answer_share(_requests(loaded, asked.limit))
            continue
        result = _result(task, loaded, model, recipe, asked) | {"seconds": round(time.monotonic() - began, 1)}
        write_json(result_file(asked.folder, task), result)
        results.append(result)
    if share.rank == 0:
        show(results)
        _refuse(results, recipe.evaluation.max_failed, asked.folder)
    return results


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    first = results[0]
    table = Table(title=f"{first['model']}, {first['checkpoint']}, max_pixels={first['settings']['max_pixels']:,}")
    for column in ("task", "figure", "score", "answered", "failed", "4B", "8B"):
        table.add_column(column, justify="left" if column in ("task", "figure") else "right")
    for result in results:
        known = result["score"]
        table.add_row(
            result["task"],
            known["metric"] if known else result["problem"] or "in the result file",
            f"{known['percent']:.1f} %" if known else "–",
            f"{result['answered']:,}",
            str(result["failed"]),
            *(_shown(result["published"].get(size)) for size in ("4b", "8b")),
        )
    Console(width=WIDTH).print(table)


def _shown(entry: dict[str, float] | None) -> str:
    if entry is None:
        return "–"
    return f"{entry['percent']:.1f}" + (f" ({entry['difference']:+.1f})" if "difference" in entry else "")


def _refuse(results: list[dict[str, Any]], max_failed: float, folder: Path) -> None:
    problems = []
    for result in results:
        count = result["answered"] + result["failed"]
        if result["failed"] > max_failed * count:
            problems.append(
                f"{result['task']}: {result['failed']} of {count} questions failed, which the score leaves out, such "
                f"as {result['failures'][0]['document']}: {result['failures'][0]['error']}"
            )
        if result["problem"]:
            problems.append(f"{result['task']}: {result['problem']}")
    if problems:
        raise DataError(*problems, f"{folder} keeps what was answered: the same command asks again what failed")


def _files(recipe: Recipe, asked: TaskRun, task: str) -> TaskFiles | None:
    """The task files of data on this disk; None for a task whose data lmms-eval finds by itself."""
    root, folder = Path(asked.run) / FOLDER, asked.folder / "tasks" / task
    evaluation = recipe.evaluation
    if task == HELDOUT_TASK:
        write_heldout(evaluation.corpus, (root / HELDOUT_DATA).parent)
        return write_heldout_task(folder, root / "cache", root / HELDOUT_DATA, evaluation.max_new_tokens)
    if not evaluation.data:
        return None
    return write_local_task(folder, root / "cache", task, KNOWN, Path(evaluation.data))


def _model(recipe: Recipe, asked: TaskRun, share: Share, local_rank: int) -> Keeping:
    retries, data = recipe.evaluation.retries, recipe.data
    if asked.model == MODELS[1]:
        from onevision.evaluation.harness.exported import OneVisionExported

        return OneVisionExported(
            asked.exported,
            max_pixels=data.max_pixels,
            min_pixels=data.min_pixels,
            retries=retries,
            responses=str(asked.folder),
            device=f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu",
            share=share,
            marks_failures=True,
            threads=recipe.train.threads,
        )
    from onevision.evaluation.harness.checkpoint import OneVision

    return OneVision(
        asked.run,
        asked.step,
        batch_size=recipe.evaluation.batch_size,
        retries=retries,
        responses=str(asked.folder),
        recipe=recipe,
        share=share,
        local_rank=local_rank,
        marks_failures=True,
    )


def _load(task: str, files: TaskFiles | None, model: Keeping) -> Loaded:
    """Load a task and its data, as lmms-eval's own `simple_evaluate` prepares them.

    Raises:
        InputError: it cannot be loaded.
    """
    for seed, draw in ((0, random.seed), (1234, np.random.seed), (1234, torch.manual_seed)):  # lmms-eval's own
        draw(seed)
    where = str(files.folder) if files else None
    try:
        manager = TaskManager("ERROR", include_path=where, include_defaults=files is None, model_name="onevision")
        if task not in manager.all_tasks:
            raise InputError(f"lmms-eval has no task {task}: lmms-eval --tasks list shows them all")
        task_dict = get_task_dict([task], manager, "chat")
    except OneVisionError:
        raise
    except Exception as error:
        raise InputError(f"task {task} cannot be loaded: {_line(error)}") from error
    parts = {output.task_name: output.task for output in get_task_list(task_dict)}
    for name, part in parts.items():
        model.task_dict[name] = part.dataset
        if part.get_config("num_fewshot") is None:
            part.set_config("num_fewshot", 0)
        part.set_fewshot_seed(seed=1234)
    if files:
        model.data_digests |= files.digests
    return Loaded(task_dict, parts)


def _requests(loaded: Loaded, limit: int) -> list[Any]:
    """All that a task asks, in the order in which `evaluate` asks it."""
    requests = []
    for part in loaded.parts.values():
        part.build_all_requests(limit=limit or None, rank=0, world_size=1)
        requests += [request for request in part.instances for _ in range(request.repeats)]
    return requests


def _result(task: str, loaded: Loaded, model: Keeping, recipe: Recipe, asked: TaskRun) -> dict[str, Any]:
    """Answer a task and score it."""
    model.failures = {}
    model.on_answers = lambda: _leave_out(loaded, model.failures)
    arguments = argparse.Namespace(process_with_media=False, output_path=str(asked.folder), log_samples=False)
    metrics: dict[str, dict[str, Any]] = {}
    problem = ""
    try:
        with not_launched():
            found = evaluate(
                lm=model,
                task_dict=loaded.task_dict,
                limit=asked.limit or None,
                bootstrap_iters=0,
                log_samples=False,
                distributed_executor_backend="torchrun",  # which does without accelerate
                cli_args=arguments,
            )
        metrics = {name: _numbers(values) for name, values in found["results"].items()}
    except OneVisionError:
        raise
    except Exception as error:  # of the task's own scorer; the answers are kept
        problem = f"not scored: {_line(error)}"
    reached = score(task, metrics)
    if reached is None and not problem and task in TASKS:
        problem = "" if TASKS[task].note else f"no figure {TASKS[task].metric}"
    count = len({(name, request.doc_id) for name, part in loaded.parts.items() for request in part.instances})
    failures = [
        {"task": name, "document": document, "error": error} for (name, document), error in model.failures.items()
    ]
    return {
        "task": task,
        "model": asked.model,
        "run": asked.run,
        "step": asked.step,
        "checkpoint": asked.exported or f"{asked.run}, step {asked.step}",
        "score": reached,
        "published": beside(task, reached["percent"] if reached else None),
        "note": TASKS[task].note if task in TASKS else "",
        "problem": problem,
        "answered": count,
        "failed": len(failures),
        "failures": failures[:SHOWN_FAILURES],
        "metrics": metrics,
        "limit": asked.limit,
        "settings": {
            **model.settings,
            "batch_tokens": recipe.evaluation.batch_tokens,
            "retries": recipe.evaluation.retries,
        },
        "parts": {name: _asked_how(name, part, model) for name, part in loaded.parts.items()},
        "versions": {"onevision": commit() or version("onevision"), **{name: version(name) for name in PACKAGES}},
    }


def _asked_how(name: str, part: Any, model: Keeping) -> dict[str, Any]:
    """How a part of a task asked, and of what data."""
    return {
        "version": str(part.VERSION),
        "data": model.data_digests.get(name) or str(part.dataset[_split(part)]._fingerprint),
        "data_path": str(part.config.dataset_path),
        "split": _split(part),
        "prompts": part.lmms_eval_specific_kwargs or {},
        "generation": part.config.generation_kwargs or {},
    }


def _split(part: Any) -> str:
    return str(part.config.test_split or part.config.validation_split)


def _leave_out(loaded: Loaded, failures: dict[tuple[str, int], str]) -> None:
    """Take failed documents out of what is scored: an answer that there is not is neither right nor wrong."""
    for name, part in loaded.parts.items():
        part._instances = [request for request in part.instances if (name, request.doc_id) not in failures]


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The figures of a part of a task, without the names of filters: "accuracy,none" is accuracy."""
    found: dict[str, float] = {}
    for key, value in values.items():
        name = key.partition(",")[0]
        if name not in found and isinstance(value, int | float | np.number):
            found[name] = float(value)
    return found


def _line(error: BaseException) -> str:
    return printable(": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]]))
