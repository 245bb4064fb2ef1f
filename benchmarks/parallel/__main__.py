"""`make parallel-check`: every layout trains what one process trains, and goes on where another one stopped.

Each layout trains 10 steps of the mini model in FP32 on each kind of data (`benchmarks.parallel.inputs`), as stage 1
and as stage 1.5 freeze it (stage 2 freezes nothing either), and loss and gradient norm of every step are compared with
those of one process. Then runs are stopped in one layout and go on in another one. The result is written to
benchmarks/results/parallel.json. With only=TEXT only layouts and pairs whose name holds the text; with strict=1 an
unmet goal gives exit code 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.forks import Failed
from benchmarks.parallel.compare import TOLERANCE, Case, Comparison, Difference
from benchmarks.parallel.inputs import DATA, make_inputs
from benchmarks.parallel.layouts import LAYOUTS, PAIRS, Layout, named
from benchmarks.results import Row, package_versions, write_results
from onevision.errors import InputError, OneVisionError
from onevision.progress import bar, duration

STAGES = ("stage1", "stage1_5")
CASES = [Case(stage, data) for stage in STAGES for data in DATA]
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
    if not only:
        written = write_results("parallel", rows, package_versions("torch", "megatron-core"))
        print(f"{written}")
    unmet = [row.path for row in rows if not row.met]
    print(f"{len(rows) - len(unmet)} of {len(rows)} as one process" + (f"; not: {', '.join(unmet)}" if unmet else ""))
    return 1 if unmet and strict else 0


def _check(folder: Path, layouts: list[Layout], pairs: list[tuple[str, str]]) -> list[Row]:
    print("drawing the data, initialising the weights", flush=True)
    make_inputs(folder)
    comparison = Comparison(folder)
    table = Table(title=GOAL)
    for column in ("layout", "ranks", *map(str, CASES)):
        table.add_column(column)
    rows, began, total = [], time.monotonic(), len(layouts) + len(pairs)

    def progress(done: int, name: str) -> None:
        passed = time.monotonic() - began
        left = f"ETA {duration(passed / done * (total - done))}" if done else ""
        print(f"{bar(done / total)} {done}/{total} {name} {left}", flush=True)

    for done, layout in enumerate(layouts):
        progress(done, layout.name)
        try:
            found = comparison.run(layout, CASES)
        except Failed as error:
            table.add_row(layout.name, str(layout.ranks), str(error).splitlines()[-1])
            rows.append(_row(layout.name, "all", None))
            continue
        table.add_row(layout.name, str(layout.ranks), *(_text(found[case]) for case in CASES))
        rows += [_row(layout.name, str(case), found[case]) for case in CASES]
    resumed = Table(title=f"Stopped in one layout, ended in another ({RESUMED}): {GOAL}")
    for column in ("from", "to", "difference"):
        resumed.add_column(column)
    for done, (before, after) in enumerate(pairs, start=len(layouts)):
        progress(done, f"{before} -> {after}")
        try:
            difference = comparison.resumed(named(before), named(after), RESUMED)
        except Failed as error:
            resumed.add_row(before, after, str(error).splitlines()[-1])
            rows.append(_row(f"{before} -> {after}", str(RESUMED), None))
            continue
        resumed.add_row(before, after, _text(difference))
        rows.append(_row(f"{before} -> {after}", str(RESUMED), difference))
    progress(total, "")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(resumed)
    return rows


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
