"""The evaluation job: accuracy per category of a run's newest checkpoint on the held-out questions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.arguments import parse, run_recipe
from jobs.cluster import Work
from jobs.place import place_of, start
from jobs.ranks import ready_model
from onevision.recipe import Recipe


def run(arguments: list[str]) -> int:
    """python -m jobs evaluate RUN [key=value ...]

    Answers the questions of `evaluation.corpus` by greedy generation; answers.jsonl and the accuracy per category
    stand in RUN/evaluation.
    """
    path, overrides, own = parse(arguments, "evaluate", "run folder")
    recipe = run_recipe(path, overrides)
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
