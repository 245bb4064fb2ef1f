"""The spread of step times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, least and most."""
    ends = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return {
        "median": statistics.median(values),
        "p10": ends[0],
        "p90": ends[8],
        "min": min(values),
        "max": max(values),
    }
