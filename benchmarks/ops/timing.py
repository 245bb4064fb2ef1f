"""Time of calls on the GPU, the bandwidth of a copy, and rows that say how near an op comes to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import results

SLEEP = 4_000_000  # clock cycles, some ms: the host has queued all calls before the first of them begins


@dataclass(frozen=True)
class Row(results.Row):
    """With what the figure was made of."""

    bytes: int = 0  # that must be moved, each once
    formula: str = ""  # of these bytes
    microseconds: float = 0.0  # of a call, the median


def microseconds(calls: Sequence[Callable[[], object]], repeats: int = 15, sleep: int = SLEEP) -> float:
    """Time of a call on the GPU: the median of `repeats` rounds through all calls, by CUDA events.

    The calls should differ in their inputs, which together are larger than the cache.
    """
    for call in calls:
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(sleep)
        start.record()
        for call in calls:
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(calls))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy from memory of the device to memory of the device."""
    size = 1 << 30
    pairs = [torch.randint(0, 256, (2, size), dtype=torch.uint8, device="cuda") for _ in range(2)]
    calls = [partial(pair[1].copy_, pair[0]) for pair in pairs]
    return 2 * size / (1e-6 * microseconds(calls))


def traffic(path: str, micro: float, moved: int, formula: str, copy: float, share: float | None) -> Row:
    """The row of an op that took `micro` microseconds for `moved` bytes; `share` of the copy's rate is its goal."""
    rate = moved / (1e-6 * micro)
    goal, met = (f">= {share:g}x", rate >= share * copy) if share else ("none, for comparison", True)
    return Row(
        path, f"bandwidth ({moved / 1e6:.4g} MB, {micro:.4g} us)", rate / 1e9, "GB/s", "copy on this GPU", copy / 1e9,
        goal, bool(met), moved, formula, micro,
    )
