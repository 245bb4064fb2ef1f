"""The layouts trained beside each other, each compared with one process, and what is told of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.forks import Failed
from benchmarks.parallel.compare import TOLERANCE, Case, Comparison, Difference
from benchmarks.parallel.inputs import DATA, make_inputs
from benchmarks.parallel.layouts import Layout, named
from benchmarks.results import Row
from onevision.progress import bar, duration

STAGES = ("stage1", "stage1_5")
CASES = [Case(stage, data) for stage in STAGES for data in DATA]
AT_ONCE = 2
RESUMED = Case("stage1_5", "unequal")
GOAL = f"loss and gradient norm within {TOLERANCE:.0e} of one process, every planned sample once"


def check(folder: Path, layouts: list[Layout], pairs: list[tuple[str, str]]) -> list[Row]:
    """Train them below `folder` and show how they compare; returns the rows of the results."""
    print("drawing the data, initialising the weights, training with one process", flush=True)
    make_inputs(folder)
    comparison = Comparison(folder)
    for case in CASES if layouts else [RESUMED]:
        comparison.reference(case)
    table = Table(title=GOAL)
    for column in ("layout", "ranks", *map(str, CASES)):
        table.add_column(column)
    resumed = Table(title=f"Stopped in one layout, ended in another ({RESUMED}): {GOAL}")
    for column in ("from", "to", "difference"):
        resumed.add_column(column)
    rows: list[Row] = []
    names = [layout.name for layout in layouts] + [f"{before} -> {after}" for before, after in pairs]
    calls: list[Callable[[], dict[Case, Difference]]] = [partial(comparison.run, layout, CASES) for layout in layouts]
    calls += [partial(_resumed, comparison, *map(named, pair)) for pair in pairs]
    places = [(table, [layout.name, str(layout.ranks)], CASES) for layout in layouts]
    places += [(resumed, list(pair), [RESUMED]) for pair in pairs]
    for name, found, (shown, cells, cases) in zip(names, _in_turn(names, calls), places, strict=True):
        if isinstance(found, Failed):
            shown.add_row(*cells, str(found).splitlines()[-1])
            rows.append(_row(name, "all", None))
        else:
            shown.add_row(*cells, *(_text(found[case]) for case in cases))
            rows += [_row(name, str(case), found[case]) for case in cases]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(resumed)
    return rows


def _resumed(comparison: Comparison, before: Layout, after: Layout) -> dict[Case, Difference]:
    return {RESUMED: comparison.resumed(before, after, RESUMED)}


def _in_turn(
    names: list[str], calls: list[Callable[[], dict[Case, Difference]]]
) -> Iterator[dict[Case, Difference] | Failed]:
    """What the calls give, in their order, while a bar shows how many are done."""
    began, total = time.monotonic(), len(calls)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pending = [pool.submit(call) for call in calls]
        for done, (name, future) in enumerate(zip(names, pending, strict=True)):
            passed = time.monotonic() - began
            left = f"ETA {duration(passed / done * (total - done))}" if done else ""
            print(f"{bar(done / total)} {done}/{total} {name} {left}", flush=True)
            try:
                yield future.result()
            except Failed as error:
                yield error
            except BaseException:  # Ctrl-C: those that have not begun are left out
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    print(f"{bar(1.0)} {total}/{total}", flush=True)


def _text(found: Difference) -> str:
    worst = f"{max(found.loss, found.grad_norm):.1e}"
    return worst if found.met else f"{worst}{'' if found.planned else ', other samples'} (not met)"


def _row(path: str, case: str, found: Difference | None) -> Row:
    value = max(found.loss, found.grad_norm) if found is not None else 1.0
    met = found is not None and found.met
    return Row(path, f"{case}: largest difference", value, "relative", "one process", 0.0, GOAL, met)
