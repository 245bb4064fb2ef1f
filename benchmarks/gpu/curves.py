"""The picture of the parity runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

REFERENCE = "fp32"


def draw_curves(curves: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Write the losses by step, and below them how far each is from FP32."""
    from matplotlib.figure import Figure

    from benchmarks.gpu.parity import GOAL, relative, smoothed

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for name, curve in curves.items():
        steps = range(1, len(curve) + 1)
        above.plot(steps, smoothed(curve), label=name, linewidth=1.2)
        if name != REFERENCE and REFERENCE in curves:
            below.plot(steps, 100 * relative(curve, curves[REFERENCE]), label=name, linewidth=1.2)
    above.set(ylabel="loss, mean of 10 steps", title=title)
    above.legend()
    below.axhline(100 * GOAL, color="grey", linestyle=":", linewidth=1)
    below.set(xlabel="step", ylabel="off fp32, %")
    figure.savefig(path)
