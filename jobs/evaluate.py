"""The evaluation job: accuracy per category of a run's newest checkpoint on the held-out questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.arguments import parse, run_recipe
from jobs.cluster import launch
from jobs.train import quiet
from onevision.recipe import Recipe


def run(arguments: list[str]) -> int:
    """python -m jobs evaluate RUN [key=value ...]

    Answers the questions of `evaluation.corpus` by greedy generation; answers.jsonl and the accuracy per category
    stand in RUN/evaluation.
    """
    path, overrides, _ = parse(arguments, "evaluate", "run folder")
    recipe = run_recipe(path, overrides)
    summary = launch(
        "evaluate", evaluate_here, recipe, str(path), str(path / "evaluation"), log_folder=path / "log"
    )
    table = Table(title=f"{path}, step {summary['step']}")
    for column, justify in (("category", "left"), ("accuracy", "right"), ("n", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for category, score in summary["categories"].items():
        table.add_row(category, f"{score['accuracy']:.1%}", str(score["n"]))
    Console().print(table)
    return 0


def evaluate_here(recipe: Recipe, checkpoint: str, output: str) -> dict[str, Any]:
    """The evaluation job itself."""
    quiet()
    from onevision.evaluation.accuracy import evaluate

    return evaluate(recipe, checkpoint, Path(output)).summary
