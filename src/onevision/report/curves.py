"""The report's training section: curves of all stages on common axes, and the table of their figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onevision.model.presets import PRESETS
from onevision.progress import duration
from onevision.recipe import MODULES, Recipe
from onevision.report.charts import CURVE_POINTS, Axis, Tick, axis, path, percent, smooth
from onevision.report.results import Stage
from onevision.report.summary import stage_summary, total

SMALL_POINTS = 240  # of a curve in a small chart


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps of one stage: the path of every step, the smoothed one if any, and where it ends."""

    raw: str
    smoothed: str
    end: str  # the last smoothed value
    end_at: float  # percent of the axis


@dataclass(frozen=True)
class Strip:
    """A quantity over all stages: one panel a stage, beside each other, with a common axis."""

    title: str
    unit: str
    axis: Axis
    curves: list[Curve]
    ends: bool = False  # whether the last values are written beside the curves


@dataclass(frozen=True)
class Panel:
    """A stage's column: its name, its steps (which make its width), and the marks of its step axis."""

    title: str
    trained: str
    steps: int
    ticks: list[Tick]


@dataclass(frozen=True)
class CategoryLoss:
    """Loss of one category over all stages behind each other."""

    name: str
    curves: list[Curve]
    last: float


def stage_title(name: str) -> str:
    """`stage1_5` as it is read: Stage 1.5."""
    return name.replace("stage", "Stage ").replace("_", ".") if name.startswith("stage") else name


def trained_parts(recipe: Recipe) -> str:
    """Which parts of the model a stage trains."""
    parts = [part for part in MODULES if part not in recipe.model.freeze]
    return "all parts" if len(parts) == len(MODULES) else " and ".join(parts)


def panels(stages: list[Stage]) -> list[Panel]:
    """The columns of the strips."""
    longest = max(stage.rows[-1]["step"] for stage in stages)
    found = []
    for stage in stages:
        steps = stage.rows[-1]["step"]
        ticks = axis(0, steps, "{:,.0f}", whole=True, count=4).ticks if steps > 0.15 * longest else []
        inner = [tick for tick in ticks if 0 < tick.at < 75]  # the last step is written at the end
        found.append(Panel(stage_title(stage.name), trained_parts(stage.recipe), steps, inner))
    return found


def strips(stages: list[Stage]) -> list[Strip]:
    """Loss, learning rate, throughput and MFU."""
    losses = [row["loss"] for stage in stages for row in stage.rows]
    loss_axis = axis(max(min(losses), 1e-6), max(losses), log=True, count=8)
    return [
        _strip("Loss", "per answer token, log scale", loss_axis, stages, lambda row: row["loss"], ends=True),
        _zero_based("Learning rate", "", "{:g}", stages, lambda row: row["lr"], smoothed=False),
        _zero_based("Throughput", "tokens/s", "{:,.0f}", stages, lambda row: row["tokens_per_second"]),
        _zero_based("MFU", "% of the device's peak", "{:.0f} %", stages, lambda row: 100 * row["mfu"]),
    ]


def category_losses(stages: list[Stage]) -> tuple[list[CategoryLoss], Axis, list[float]]:
    """Curves of every category, their common axis, and where a new stage begins (percent)."""
    names = sorted({name for stage in stages for row in stage.rows for name in row["loss_by_category"]})
    values = [value for stage in stages for row in stage.rows for value in row["loss_by_category"].values()]
    if not values:
        return [], axis(0.1, 1.0, log=True), []
    loss_axis = axis(max(min(values), 1e-3), max(values), log=True)
    ends = [0]
    for stage in stages:
        ends.append(ends[-1] + stage.rows[-1]["step"])
    step_axis = Axis(0, ends[-1], log=False, ticks=[])
    found = []
    for name in names:
        curves = []
        last = 0.0
        for stage, start in zip(stages, ends, strict=False):
            rows = [row for row in stage.rows if name in row["loss_by_category"]]
            if not rows:
                continue
            x = [start + row["step"] for row in rows]
            y = [row["loss_by_category"][name] for row in rows]
            curves.append(_curve(step_axis, loss_axis, x, y, limit=SMALL_POINTS))
            last = float(smooth(y)[-1])
        found.append(CategoryLoss(name, curves, last))
    return found, loss_axis, [round(100 * end / ends[-1], 2) for end in ends[1:-1]]


def stage_table(stages: list[Stage]) -> list[tuple[str, list[str]]]:
    """Figures of the stages: a label, and a cell for each stage."""
    rows: list[tuple[str, Callable[[Stage, dict[str, Any]], str]]] = [
        ("Trained", lambda stage, _: trained_parts(stage.recipe)),
        ("Steps", lambda _, summary: f"{summary['steps']:,}"),
        ("Packs a step", lambda stage, _: f"{stage.recipe.train.global_batch_size:,}"),
        ("Epochs", lambda stage, _: f"{stage.rows[-1]['epoch']:.2f}"),
        ("Highest learning rate", lambda stage, _: f"{stage.recipe.optimizer.lr:g}"),
        ("Loss, first step", lambda _, summary: f"{summary['loss_first']:.3f}"),
        ("Loss, last step", lambda _, summary: f"{summary['loss_last']:.3f}"),
        ("Time", lambda _, summary: duration(summary["seconds"])),
        ("Tokens/s", lambda _, summary: f"{summary['tokens_per_second']:,.0f}"),
        ("Samples/s", lambda _, summary: f"{summary['samples_per_second']:,.1f}"),
        ("MFU", lambda _, summary: percent(summary["mfu"], 1)),
        ("HFU", lambda _, summary: percent(summary["hfu"], 1)),
        ("Waiting for data", lambda stage, _: percent(_share(stage, "data_seconds", "step_seconds"), 1)),
        ("Memory, highest", lambda stage, _: f"{max(row['memory_mb'] for row in stage.rows) / 1000:,.1f} GB"),
        ("Samples skipped", lambda _, summary: f"{summary['skipped']:,}"),
        ("Continued after step", lambda _, summary: f"{summary['resumed'] or '–'}"),
    ]
    summaries = [stage_summary(stage) for stage in stages]
    return [
        (label, [cell(stage, summary) for stage, summary in zip(stages, summaries, strict=True)])
        for label, cell in rows
    ]


def model_line(stages: list[Stage], parameters: int | None) -> str:
    """The preset with its sizes, such as `tiny: vision 4 x 128, language 4 x 128`."""
    architecture = PRESETS[stages[-1].recipe.model.preset]
    vision, language = architecture.vision, architecture.language
    size = f", {parameters / 1e6:,.1f} M parameters" if parameters else ""
    return (
        f"{architecture.name}{size}: vision {vision.num_layers} layers x {vision.hidden_size}, "
        f"language {language.num_layers} layers x {language.hidden_size}"
    )


def _zero_based(
    title: str,
    unit: str,
    form: str,
    stages: list[Stage],
    value: Callable[[dict[str, Any]], float],
    *,
    smoothed: bool = True,
) -> Strip:
    highest = max(value(row) for stage in stages for row in stage.rows)
    return _strip(title, unit, axis(0, highest, form, count=3), stages, value, smoothed=smoothed)


def _strip(
    title: str,
    unit: str,
    y_axis: Axis,
    stages: list[Stage],
    value: Callable[[dict[str, Any]], float],
    *,
    smoothed: bool = True,
    ends: bool = False,
) -> Strip:
    curves = []
    for stage in stages:
        x = [row["step"] for row in stage.rows]
        x_axis = Axis(0, x[-1], log=False, ticks=[])
        curves.append(_curve(x_axis, y_axis, x, [value(row) for row in stage.rows], smoothed=smoothed))
    return Strip(title, unit, y_axis, curves, ends)


def _curve(
    x_axis: Axis,
    y_axis: Axis,
    x: list[int],
    y: list[float],
    *,
    smoothed: bool = True,
    limit: int = CURVE_POINTS,
) -> Curve:
    line = smooth(y)
    return Curve(
        path(x_axis, y_axis, x, y, limit),
        path(x_axis, y_axis, x, line.tolist(), limit) if smoothed else "",
        f"{line[-1]:.2f}",
        round(float(y_axis.place(line[-1:])[0]), 2),
    )


def _share(stage: Stage, part: str, whole: str) -> float:
    return total(stage.rows, part) / total(stage.rows, whole)
