from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onevision.report.charts import CURVE_POINTS, axis, histogram, path, percent, smooth, thin

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(FINITE, FINITE, st.booleans())
def test_linear_axis_covers_its_range(a: float, b: float, whole: bool) -> None:
    low, high = min(a, b), max(a, b)
    made = axis(low, high, whole=whole)
    slack = 1e-6 * max(abs(low), abs(high))
    assert made.low <= low + slack and made.high >= high - slack
    places = made.place([low, high])
    assert 0 <= places[0] <= places[1] <= 100
    assert all(0 <= tick.at <= 100 for tick in made.ticks)
    assert [tick.at for tick in made.ticks] == sorted(tick.at for tick in made.ticks)


@given(st.floats(1e-5, 1e3), st.floats(1.5, 1e6))
def test_log_axis_has_few_round_marks(low: float, factor: float) -> None:
    made = axis(low, low * factor, log=True, count=8)
    assert made.place([low, low * factor]) == pytest.approx([0, 100])
    assert made.place([low * factor**0.5])[0] == pytest.approx(50)
    assert all(0 <= tick.at <= 100 for tick in made.ticks)
    assert len(made.ticks) <= max(8, np.log10(factor) + 1)


def test_axis_marks_are_labelled() -> None:
    assert [tick.label for tick in axis(0, 9_000, "{:,.0f}", count=3).ticks] == ["0", "5,000", "10,000"]
    assert [(tick.at, tick.label) for tick in axis(1, 100, log=True, count=3).ticks] == [
        (0, "1"),
        (50, "10"),
        (100, "100"),
    ]


def test_log_axis_within_a_decade_has_marks() -> None:
    assert [tick.label for tick in axis(6.4, 8.7, log=True, count=4).ticks] == ["7", "8"]


def test_axis_of_a_single_value() -> None:
    made = axis(0, 0)
    assert made.place([0]).tolist() == [0]
    assert made.high > made.low


@given(st.lists(FINITE, min_size=1, max_size=300))
def test_smoothing_keeps_length_and_bounds(values: list[float]) -> None:
    smoothed = smooth(values)
    slack = 1e-9 * max(1.0, max(abs(value) for value in values))
    assert len(smoothed) == len(values)
    assert min(values) - slack <= smoothed.min() and smoothed.max() <= max(values) + slack


def test_smoothing_keeps_a_constant_and_calms_noise() -> None:
    assert smooth([3.0] * 50).tolist() == pytest.approx([3.0] * 50)
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    assert smooth(noise.tolist()).std() < 0.4 * noise.std()


def test_thinning_keeps_ends_and_extremes() -> None:
    x = np.arange(100_000, dtype=float)
    y = np.sin(x / 500)
    y[43_210], y[56_789] = 7, -7
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= CURVE_POINTS + 2
    assert (thin_x[0], thin_x[-1]) == (0, 99_999)
    assert (thin_y.max(), thin_y.min()) == (7, -7)
    assert (np.diff(thin_x) > 0).all()


def test_path_points_down() -> None:
    assert path(axis(0, 10), axis(0, 4), [0, 5, 10], [0, 4, 1]) == "M0 100L50 0L100 75"


def test_histogram_shows_every_count() -> None:
    chart = histogram({"edges": [0, 2, 4, 6, 8], "counts": [0, 8, 2, 0]}, "{:,.0f}", trim=True)
    assert [(bar.height, bar.count, bar.label) for bar in chart.bars] == [(100, 8, "2 – 4"), (25, 2, "4 – 6")]
    assert chart.highest == 8
    assert (chart.ticks[0].at, chart.ticks[0].label) == (0, "2")
    assert len(histogram({"edges": [0, 1, 2], "counts": [0, 0]}, "{:g}", trim=True).bars) == 2


def test_percent() -> None:
    assert percent(None) == "–"
    assert percent(0.456) == "46\N{NARROW NO-BREAK SPACE}%"
    assert percent(0.456, 1) == "45.6\N{NARROW NO-BREAK SPACE}%"
