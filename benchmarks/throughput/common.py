"""What rows of training and of peers share: the spread of step times, and what is an error of memory."""

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


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory was too small: PyTorch's own error, or that of a library that allocates beside it."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "alloc_failed" in text
