"""Geometry of the report's charts: everything in percent of the plot, so that they stretch to any screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

CURVE_POINTS = 700  # of one drawn curve; longer ones keep the lowest and highest value of each stretch
ROUND = [1, 2, 2.5, 5, 10]  # distances between the marks of an axis, times a power of ten
SMOOTHING = 0.05  # width of the smoothing window, as a share of the curve


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: percent of its length, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values and its marks."""

    low: float
    high: float
    log: bool
    ticks: list[Tick]

    def place(self, values: Any) -> np.ndarray:
        """Percent of the axis for each value; values outside are clipped."""
        return _place(np.asarray(values, float), self.low, self.high, self.log)


def axis(
    low: float, high: float, form: str = "{:,g}", *, log: bool = False, count: int = 4, whole: bool = False
) -> Axis:
    """An axis from `low` to `high` with at most about `count` round marks, labelled by the format `form`.

    The range is widened to the next mark when it is linear; a logarithmic one keeps its ends. `whole` allows whole
    numbers only and keeps the ends as well.
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    if log:
        marks: list[float] = []
        for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            found = np.asarray(LogLocator(subs=steps).tick_values(low, high))
            marks = found[(low <= found) & (found <= high)].tolist()
            if len(marks) <= count:
                break
        if len(marks) < 2:  # less than a decade, between two round numbers
            marks = np.asarray(MaxNLocator(count - 1, steps=ROUND).tick_values(low, high)).tolist()
    else:
        found = np.asarray(MaxNLocator(count, integer=whole, steps=ROUND).tick_values(low, high))
        marks = found.tolist()
        if not whole:
            low, high = marks[0], marks[-1]
    shown = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
    places = _place(np.array(shown), low, high, log) if shown else np.zeros(0)
    return Axis(
        low,
        high,
        log,
        [Tick(round(float(at), 2), form.format(mark)) for at, mark in zip(places, shown, strict=True)],
    )


def percent(value: float | None, digits: int = 0) -> str:
    """A share (0 to 1) in percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def in_percent(counted: dict[str, list[float]]) -> dict[str, list[float]]:
    """A histogram `{edges, counts}` of shares (0 to 1) with its edges in percent."""
    return {"edges": [100 * edge for edge in counted["edges"]], "counts": counted["counts"]}


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centred moving average with a Hann window over `SMOOTHING` of the curve; the window shrinks at the ends."""
    width = max(3, round(len(values) * SMOOTHING)) | 1
    window = np.hanning(width + 2)[1:-1]
    if len(values) < width:
        return np.asarray(values, float)
    weights = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(np.asarray(values, float), window, mode="same") / weights


def path(
    x_axis: Axis, y_axis: Axis, x: Sequence[float], y: Sequence[float], limit: int = CURVE_POINTS
) -> str:
    """Path data of a curve of about `limit` points in an SVG of 100 x 100 units, y pointing down."""
    xs, ys = thin(np.asarray(x, float), np.asarray(y, float), limit)
    points = zip(x_axis.place(xs), 100 - y_axis.place(ys), strict=True)
    return "M" + "L".join(f"{_number(px)} {_number(py)}" for px, py in points)


def thin(x: np.ndarray, y: np.ndarray, limit: int = CURVE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `limit` points, among them the lowest and the highest of every stretch."""
    if len(x) <= limit:
        return x, y
    keep = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), limit // 2):
        keep |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    kept = sorted(keep)
    return x[kept], y[kept]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: percent of the highest one, its count, and the range it stands for."""

    height: float
    count: int
    label: str


@dataclass(frozen=True)
class Histogram:
    """Bars from left to right, and the marks below them."""

    bars: list[Bar]
    ticks: list[Tick]
    highest: int  # count of the highest bar


def histogram(counted: dict[str, list[float]], form: str, *, trim: bool = False) -> Histogram:
    """Bars of `{edges, counts}`; `trim` leaves out the empty ones at both ends."""
    edges, counts = counted["edges"], [int(count) for count in counted["counts"]]
    filled = [i for i, count in enumerate(counts) if count]
    if trim and filled:
        edges, counts = edges[filled[0] : filled[-1] + 2], counts[filled[0] : filled[-1] + 1]
    highest = max(counts, default=0) or 1
    labels = [
        f"{form.format(low)} – {form.format(high)}" for low, high in zip(edges, edges[1:], strict=False)
    ]
    bars = [Bar(round(100 * n / highest, 2), n, label) for n, label in zip(counts, labels, strict=True)]
    return Histogram(bars, axis(edges[0], edges[-1], form, count=5, whole=True).ticks, highest)


@dataclass(frozen=True)
class Chart:
    """A histogram `{edges, counts}` of `unit`, and how to read it; `form` formats an edge."""

    title: str
    unit: str
    counted: dict[str, list[float]]
    form: str
    hint: str
    trim: bool = True  # leave out what is empty at both ends


def drawn(charts: Sequence[Chart]) -> list[tuple[Chart, Histogram]]:
    """Charts with their bars."""
    return [(chart, histogram(chart.counted, chart.form, trim=chart.trim)) for chart in charts]


@dataclass(frozen=True)
class Comparison:
    """How many of `unit` are in each bin, for several `names`; bins are in the order of their values."""

    title: str
    unit: str
    hint: str
    names: tuple[str, ...]
    lows: list[str]  # the lower edge of each bin
    labels: list[str]  # the bin as it is read
    counts: list[tuple[int, ...]]  # of each bin: one for each name
    log: bool = False  # bars as high as the logarithm of 1 + the count


@dataclass(frozen=True)
class GroupedBars:
    """The bars of a comparison, those of a bin together, and marks at lower edges of bins."""

    groups: list[list[Bar]]
    ticks: list[Tick]
    highest: int


def grouped(shown: Comparison, marks: int = 8) -> GroupedBars:
    """The bars of a comparison, with about `marks` marks."""
    highest = max((max(counts) for counts in shown.counts), default=0) or 1
    height = math.log1p if shown.log else float
    groups = [
        [
            Bar(round(100 * height(n) / height(highest), 2), n, f"{label}, {name}")
            for n, name in zip(counts, shown.names, strict=True)
        ]
        for label, counts in zip(shown.labels, shown.counts, strict=True)
    ]
    step = -(-len(groups) // marks) or 1
    ticks = [Tick(round(100 * k / len(groups), 2), shown.lows[k]) for k in range(0, len(groups), step)]
    return GroupedBars(groups, ticks, highest)


def _place(values: np.ndarray, low: float, high: float, log: bool) -> np.ndarray:
    if log:
        values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
    return np.clip(100 * (values - low) / (high - low), 0, 100)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
