"""A picture of a pipeline's result for a README: accuracy per category, and the loss of all stages."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from onevision.files import replacing
from onevision.report.charts import percent, smooth
from onevision.report.curves import stage_title
from onevision.report.results import PipelineFolders, Stage, read_results
from onevision.report.summary import summarise
from onevision.report.tables import Accuracy, accuracies

WIDTH, HEIGHT, LOSS_HEIGHT, DPI = 1600, 720, 640, 160  # pixels
INK, SOFT, LINE, AFTER, BEFORE = "#16191f", "#59616d", "#dfe3e8", "#2257c5", "#a9b1bd"
LEAST_WIDTH = 0.19  # of a stage's panel, as a share of all


def write_picture(pipeline: PipelineFolders, path: str | Path) -> Path:
    """Write the picture as a PNG of 1600 x 720 pixels, and return its path.

    Raises:
        InputError: there is nothing to show.
        StorageError: the disk is full.
    """
    results = read_results(pipeline)
    summary = summarise(results)
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    _draw_accuracy(figure, accuracies(summary["categories"]), summary["overall"])
    if results.stages:
        _draw_loss(figure, results.stages)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return Path(path)


def write_loss(stages: list[Stage], path: str | Path) -> Path:
    """Write the loss curves of stages, beside each other, as a PNG of 1600 x 640 pixels, and return its path.

    Raises:
        StorageError: the disk is full.
    """
    figure = Figure(figsize=(WIDTH / DPI, LOSS_HEIGHT / DPI), dpi=DPI, facecolor="white")
    _draw_loss(figure, stages, left=0.055)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return Path(path)


def _draw_accuracy(figure: Figure, rows: list[Accuracy], overall: dict[str, float | None]) -> None:
    axes = figure.add_axes((0.085, 0.11, 0.415, 0.70))
    _plain(axes)
    for place, row in enumerate(reversed(rows)):
        if row.after is not None:
            axes.barh(place + 0.1, row.after, 0.46, color=AFTER)
        axes.barh(place - 0.24, max(row.before or 0.0, 0.003), 0.2, color=BEFORE)
        if row.chance is not None:
            axes.vlines(row.chance, place - 0.42, place + 0.42, color="white", linewidth=4.5)
            axes.vlines(row.chance, place - 0.42, place + 0.42, color=INK, linewidth=2)
        axes.text(
            1.02, place + 0.06, percent(row.after), color=INK, fontsize=10, fontweight="bold", va="center"
        )
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], color=INK, fontsize=9.5)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    title = "Not evaluated yet"
    if overall["after"] is not None:
        title = f"{percent(overall['after'])} of held-out questions right"
        if overall["before"] is not None:
            title += f", {percent(overall['before'])} before"
    figure.text(0.012, 0.93, title, fontsize=13, fontweight="bold", color=INK)
    for x, color, text in (
        (0.012, AFTER, "after training"),
        (0.135, BEFORE, "before"),
        (0.215, INK, "chance"),
    ):
        figure.text(
            x, 0.855, "|" if text == "chance" else "\N{BLACK SQUARE}", color=color, fontsize=11, weight="bold"
        )
        figure.text(x + 0.017, 0.859, text, color=SOFT, fontsize=9)


def _draw_loss(figure: Figure, stages: list[Stage], left: float = 0.605) -> None:
    right, gap = 0.985, 0.012
    losses = [row["loss"] for stage in stages for row in stage.rows]
    steps = [stage.rows[-1]["step"] for stage in stages]
    shares = [max(count / sum(steps), LEAST_WIDTH) for count in steps]
    room = right - left - gap * (len(stages) - 1)
    figure.text(left - 0.04, 0.93, "Loss per answer token", fontsize=13, fontweight="bold", color=INK)
    for number, stage in enumerate(stages):
        width = room * shares[number] / sum(shares)
        axes = figure.add_axes((left, 0.11, width, 0.70))
        _plain(axes)
        x, y = [row["step"] for row in stage.rows], [row["loss"] for row in stage.rows]
        axes.plot(x, y, color=AFTER, alpha=0.35, linewidth=0.8)
        line = smooth(y)
        axes.plot(x, line, color=AFTER, linewidth=2)
        axes.set_yscale("log")
        axes.set_ylim(min(losses) * 0.85, max(losses) * 1.1)
        axes.set_xlim(0, x[-1])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_xticks([x[-1]], [f"{x[-1]:,} step" + "s" * (x[-1] > 1)])
        axes.get_xticklabels()[0].set_horizontalalignment("right")
        axes.text(
            x[-1],
            line[-1] * 1.5,
            f"{line[-1]:.2f}",
            color=AFTER,
            fontsize=9.5,
            fontweight="bold",
            ha="right",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )
        figure.text(left, 0.855, stage_title(stage.name), fontsize=9.5, color=INK)
        if number:
            axes.tick_params(labelleft=False)
        left += width + gap


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=SOFT, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#8a93a0")
