"""The evaluation job: accuracy per category of a run's newest checkpoint on the held-out questions, or the tasks of
lmms-eval that are named (jobs/harness.py)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.arguments import parse, run_recipe
from jobs.cluster import Work
from jobs.harness import SETTINGS, evaluate_tasks
from jobs.place import place_of, start
from jobs.ranks import ready_model
from onevision.errors import InputError
from onevision.recipe import Recipe


def run(arguments: list[str]) -> int:
    """python -m jobs evaluate RUN [key=value ...]
    python -m jobs evaluate RUN tasks=NAME,… [step=N] [nodes=N] [model=onevision_exported] [exported=DIR] [limit=N]

    Answers the questions of `evaluation.corpus` by greedy generation; answers.jsonl and the accuracy per category
    stand in RUN/evaluation. With `tasks`, those of lmms-eval, by a rank a GPU: a table, and a JSON file each in
    RUN/lmms_eval. The same command goes on where it stopped, and asks again what failed. `step` is the newest
    checkpoint unless it is named; `model=onevision_exported` asks the exported folder (RUN/export) instead, through
    lmms-eval's own class; `limit=N` asks the first N documents of a task only.
    """
    path, overrides, own = parse(arguments, "evaluate", "run folder", SETTINGS)
    recipe = run_recipe(path, overrides)
    if own.get("tasks"):
        return evaluate_tasks(recipe, path, own, place_of(own))
    if unused := [key for key in SETTINGS if own.get(key)]:
        raise InputError(f"{unused[0]}={own[unused[0]]} is for tasks of lmms-eval: name them with tasks=NAME,…")
    return start(evaluate_work(recipe, path), place_of(own), partial(_show, path))


def evaluate_work(recipe: Recipe, run: Path) -> Work:
    """The evaluation job of a run folder."""
    arguments = (recipe, str(run), str(run / "evaluation"))
    return Work("evaluate", evaluate_here, arguments, log_folder=run / "log", needs="gpu")


def _show(path: Path, summary: dict[str, Any]) -> None:
    table = Table(title=f"{path}, step {summary['step']}")
    for column, justify in (("category", "left"), ("accuracy", "right"), ("n", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for category, score in summary["categories"].items():
        table.add_row(category, f"{score['accuracy']:.1%}", str(score["n"]))
    Console().print(table)


def evaluate_here(recipe: Recipe, checkpoint: str, output: str) -> dict[str, Any]:
    """The evaluation job itself."""
    ready_model()
    from onevision.evaluation.accuracy import evaluate

    return evaluate(recipe, checkpoint, Path(output)).summary
