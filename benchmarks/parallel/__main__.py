"""`make parallel-check`: every layout trains what one process trains, and goes on where another one stopped.

Each layout trains 10 steps of the mini model in FP32 on each kind of data (`benchmarks.parallel.inputs`), as stage 1
and as stage 1.5 freeze it (stage 2 freezes nothing either), and loss and gradient norm of every step are compared with
those of one process. Then runs are stopped in one layout and go on in another one. Two layouts run beside each other:
ranks wait for each other half of their time. The result is written to benchmarks/results/parallel.json. With only=TEXT
only layouts and pairs whose name holds the text, whose rows take the place of theirs there; with strict=1 an unmet goal
gives exit code 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.forks import Failed
from benchmarks.parallel.compare import TOLERANCE, Case, Comparison, Difference
from benchmarks.parallel.inputs import DATA, make_inputs
from benchmarks.parallel.layouts import LAYOUTS, PAIRS, Layout, named
from benchmarks.results import RESULTS, Row, package_versions, write_results
from onevision.errors import InputError, OneVisionError
from onevision.files import read_json
from onevision.progress import bar, duration

STAGES = ("stage1", "stage1_5")
CASES = [Case(stage, data) for stage in STAGES for data in DATA]
AT_ONCE = 2
RESUMED = Case("stage1_5", "unequal")
GOAL = f"loss and gradient norm within {TOLERANCE:.0e} of one process, every planned sample once"


def main(arguments: list[str]) -> int:
    """Run and show; see the head comment."""
    only, strict = "", False
    for text in arguments:
        key, _, value = text.partition("=")
        if key == "only":
            only = value
        elif text == "strict=1":
            strict = True
        else:
            raise InputError(f"unknown argument {text!r}; there are only=TEXT and strict=1")
    layouts = [layout for name, layout in LAYOUTS.items() if only in name]
    pairs = [pair for pair in PAIRS if only in f"{pair[0]} -> {pair[1]}"]
    if not layouts and not pairs:
        raise InputError(f"only={only}: no layout has it in its name; there are: {', '.join(LAYOUTS)}")
    with tempfile.TemporaryDirectory(prefix="onevision-parallel-") as folder:
        rows = _check(Path(folder), layouts, pairs)
    written = write_results("parallel", _others(rows) + rows, package_versions("torch", "megatron-core"))
    print(f"{written}")
    unmet = [row.path for row in rows if not row.met]
    print(f"{len(rows) - len(unmet)} of {len(rows)} as one process" + (f"; not: {', '.join(unmet)}" if unmet else ""))
    return 1 if unmet and strict else 0


def _others(rows: list[Row]) -> list[Row]:
    """Those of other layouts and pairs in the file of results."""
    path, measured = RESULTS / "parallel.json", {row.path for row in rows}
    kept = read_json(path)["rows"] if path.exists() else []
    names = [field.name for field in fields(Row)]
    return [Row(**{name: row[name] for name in names}) for row in kept if row["path"] not in measured]


def _check(folder: Path, layouts: list[Layout], pairs: list[tuple[str, str]]) -> list[Row]:
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


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
