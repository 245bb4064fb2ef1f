"""`make eval-check`: the ways of asking a checkpoint agree, and what disturbs an evaluation loses and hides nothing.

    python -m benchmarks.evaluation [run=RUN] [keep=DIR]

`run` is a trained run whose recipe names held-out questions; by default that of `make demo`. Everything is done by the
commands that a user has, in a folder that is removed (or `keep`, a new one). The table is written to
benchmarks/results/evaluation.json. Exit code 1 if a row is not as it should be.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.evaluation.rows import check
from benchmarks.results import package_versions, write_results
from onevision.errors import InputError, OneVisionError

DEMO = "runs/demo/stage2"


def main(arguments: list[str]) -> int:
    """See the head comment."""
    values = {"run": DEMO, "keep": ""}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in values:
            raise InputError(f"{argument!r} is not one of run=, keep=")
        values[key] = value
    run = Path(values["run"])
    if not (run / "recipe.yaml").exists():
        raise InputError(f"{run} is not a run folder: run make demo first, or name another one with run=")
    if values["keep"]:
        folder = Path(values["keep"]).absolute()
        folder.mkdir(parents=True, exist_ok=False)
        return _check(folder, run)
    with tempfile.TemporaryDirectory(prefix="onevision-evaluation-") as name:
        return _check(Path(name), run)


def _check(folder: Path, run: Path) -> int:
    table = Table(title=f"evaluation of {run}")
    for column in ("what", "is", "should be", ""):
        table.add_column(column)
    rows = []
    for row in check(folder, run.absolute()):
        print(f"{row.path}: {row.value:g} {row.unit}", flush=True)
        rows.append(row)
        table.add_row(row.path, f"{row.value:g} {row.unit}", row.goal, "yes" if row.met else "NO")
    Console(width=110).print(table)
    versions = package_versions("torch", "transformers", "lmms_eval", "datasets")
    print(write_results("evaluation", rows, versions, beside={"run": str(run)}))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
