"""Tasks of lmms-eval -> a result file each: score, what failed, settings, versions, and what is published beside it.

Each rank answers its share of a task's questions; the first one scores them, task by task, so that a task whose scorer
fails (no key of its judge, no data) takes no other task's result along.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import lmms_eval.api.task
import lmms_eval.evaluator
import numpy as np
import torch
from lmms_eval.evaluator import evaluate
from rich.console import Console
from rich.table import Table

from onevision.errors import DataError, OneVisionError, line_of
from onevision.evaluation.harness.complaints import complaints
from onevision.evaluation.harness.keeping import Keeping
from onevision.evaluation.harness.loading import Loaded, load_tasks, requests_of, seed
from onevision.evaluation.harness.places import MODELS, TaskRun, result_file
from onevision.evaluation.harness.published import TASKS, beside, score
from onevision.evaluation.harness.quiet import quiet
from onevision.evaluation.harness.sharing import Share, not_launched
from onevision.files import write_json
from onevision.machine import commit, version
from onevision.recipe import Recipe

PACKAGES = ("lmms_eval", "torch", "transformers", "datasets", "tokenizers", "pillow", "numpy", "megatron-core")
SHOWN_FAILURES = 20  # in a result file; the responses have all
WIDTH = 110  # columns of the table


def run_tasks(recipe: Recipe, asked: TaskRun, share: Share, local_rank: int) -> list[dict[str, Any]]:
    """Answer and score tasks; the first rank returns their results, the others nothing.

    Raises:
        InputError: there is no such task, checkpoint or folder, its data is not there, or it asks for what the model
            cannot do; nothing was asked then.
        DataError: more of a task's questions failed than `evaluation.max_failed`, or a task could not be scored. The
            results are written.
    """
    quiet(lmms_eval.evaluator, lmms_eval.api.task)
    # What the first rank writes and downloads is read by all.
    tasks = load_tasks(recipe.evaluation, asked) if share.rank == 0 else {}
    share.done("loading")
    share.wait_for_others("loading")
    if share.rank:
        tasks = load_tasks(recipe.evaluation, asked)
    model = _model(recipe, asked, share, local_rank)
    for loaded in tasks.values():
        for name, part in loaded.parts.items():
            model.check(part.config.generation_kwargs or {})
            model.task_dict[name] = part.dataset
        model.data_digests |= loaded.digests
    results = []
    for task, loaded in tasks.items():
        began = time.monotonic()
        model.asking = task
        if share.rank:
            _answer_share(loaded, model, asked.limit)
            continue
        result = _result(task, loaded, model, recipe, asked) | {"seconds": round(time.monotonic() - began, 1)}
        write_json(result_file(asked.folder, task), result)
        results.append(result)
    if share.rank == 0:
        show(results)
        _refuse(results, recipe.evaluation.max_failed, asked.folder)
    return results


def _answer_share(loaded: Loaded, model: Keeping, limit: int) -> None:
    """A rank's share of a task's questions; where a task cannot say what it asks, the first rank tells why."""
    seed()
    try:
        requests = requests_of(loaded, limit)
    except Exception:  # of the task's own functions, and the same in every rank
        requests = []
    model.answer_share(requests)


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


def _result(task: str, loaded: Loaded, model: Keeping, recipe: Recipe, asked: TaskRun) -> dict[str, Any]:
    """Answer a task and score it."""
    model.failures = {}
    arguments = argparse.Namespace(process_with_media=False, output_path=str(asked.folder), log_samples=False)
    metrics: dict[str, dict[str, Any]] = {}
    problem = ""
    said: list[str] = []
    seed()
    try:
        with not_launched(), complaints() as said:

            def begin_scoring() -> None:
                said.clear()  # what was said of questions is counted as their failures
                _leave_out(loaded, model.failures)

            model.on_answers = begin_scoring
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
        problem = f"not scored: {line_of(error)}"
    if said and not problem:
        problem = f"not scored: the scorer reported {len(said)} errors, which count as wrong answers, first: {said[0]}"
    reached = None if problem else score(task, metrics)
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
        if name not in found and isinstance(value, int | float | np.number) and math.isfinite(value):
            found[name] = float(value)
    return found
