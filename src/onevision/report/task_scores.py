"""The report's section on tasks of lmms-eval: a curve a task over all stages, and a table of the last results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onevision.report.charts import Axis, axis, path, percent
from onevision.report.curves import stage_title
from onevision.report.results import Stage


@dataclass(frozen=True)
class TaskCurve:
    """A task's score over the steps of all stages: a line a stage, a dot (percent of both axes, title) a result."""

    name: str
    lines: list[str]
    dots: list[tuple[float, float, str]]
    last: str


@dataclass(frozen=True)
class TaskRow:
    """The last result of a task, as it is read."""

    name: str
    checkpoint: str
    metric: str
    score: str
    answered: str
    failed: int
    published: list[str]  # of 4B and 8B, with the difference


def task_curves(stages: list[Stage]) -> tuple[list[TaskCurve], Axis]:
    """Curves of all tasks with a score, and the axis of scores they share."""
    ends = [0]
    for stage in stages:
        ends.append(ends[-1] + stage.rows[-1]["step"])
    y_axis, x_axis = axis(0, 100, "{:.0f} %", count=4), Axis(0, max(ends[-1], 1), log=False, ticks=[])
    found: dict[str, TaskCurve] = {}
    for stage, start in zip(stages, ends, strict=False):
        for name, rows in _by_task(stage).items():
            curve = found.setdefault(name, TaskCurve(name, [], [], ""))
            x = [float(start + row["step"]) for row in rows]
            y = [float(row["score"]["percent"]) for row in rows]
            curve.lines.append(path(x_axis, y_axis, x, y))
            for row, across, up in zip(rows, x_axis.place(x), y_axis.place(y), strict=True):
                title = f"{stage_title(stage.name)}, step {row['step']:,}: {_percent(row)}"
                curve.dots.append((round(float(across), 2), round(float(up), 2), title))
            found[name] = TaskCurve(name, curve.lines, curve.dots, _percent(rows[-1]))
    return list(found.values()), y_axis


def task_rows(stages: list[Stage]) -> list[TaskRow]:
    """The last result of each task, whether it has a score or not."""
    last: dict[str, tuple[Stage, dict[str, Any]]] = {}
    for stage in stages:
        for row in stage.tasks:
            last[row["task"]] = (stage, row)
    return [_row(stage, row) for stage, row in last.values()]


def _by_task(stage: Stage) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in stage.tasks:
        if row.get("score"):
            found.setdefault(row["task"], []).append(row)
    return found


def _row(stage: Stage, row: dict[str, Any]) -> TaskRow:
    score = row.get("score")
    published = row.get("published") or {}
    return TaskRow(
        row["task"],
        f"{stage_title(stage.name)}, step {row['step']:,}",
        score["metric"] if score else row.get("problem") or "no figure: see the file",
        _percent(row) if score else "–",
        f"{row['answered']:,}",
        row["failed"],
        [_beside(published.get(size)) for size in ("4b", "8b")],
    )


def _beside(entry: dict[str, float] | None) -> str:
    return f"{entry['percent']:.1f} ({entry['difference']:+.1f})" if entry and "difference" in entry else "–"


def _percent(row: dict[str, Any]) -> str:
    return percent(row["score"]["percent"] / 100, 1)
