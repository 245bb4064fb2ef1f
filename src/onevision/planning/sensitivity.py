"""Which assumption matters most: each one changed by a fifth, alone, and what that does to the time of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onevision.planning.hardware import SHARE, Gpu, with_figures
from onevision.planning.work import Packs

CHANGE = 0.2


@dataclass(frozen=True)
class Sensitivity:
    """An assumption, and the relative change of the time when it is lower and when it is higher."""

    name: str
    value: float
    unit: str
    source: str
    lower: float
    higher: float

    @property
    def effect(self) -> float:
        """The larger of both changes, without its sign."""
        return max(abs(self.lower), abs(self.higher))


def sensitivities(seconds: Callable[[Gpu, Packs], float], gpu: Gpu, packs: Packs) -> list[Sensitivity]:
    """All assumed figures of the GPU, and the size of images, that with most effect first. A share stays at most 1."""
    base = seconds(gpu, packs)
    found = []
    for name, figure in gpu.figures().items():
        if not figure.assumed:
            continue
        low, high = figure.value * (1 - CHANGE), figure.value * (1 + CHANGE)
        if figure.unit == SHARE:
            high = min(1.0, high)
        lower, higher = (seconds(with_figures(gpu, {name: value}, name), packs) / base - 1 for value in (low, high))
        found.append(Sensitivity(name, figure.value, figure.unit, figure.source, lower, higher))
    lower, higher = (
        seconds(gpu, replace(packs, sample_patches=packs.sample_patches * (1 + change))) / base - 1
        for change in (-CHANGE, CHANGE)
    )
    source = "not published; where it is not given, three of four tokens are taken as image"
    found.append(Sensitivity("sample_patches", packs.sample_patches, "patches", source, lower, higher))
    return sorted(found, key=lambda one: -one.effect)
