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
from dataclasses import fields
from pathlib import Path

from benchmarks.parallel.layouts import LAYOUTS, PAIRS
from benchmarks.results import RESULTS, Row, package_versions, write_results
from jobs.ranks import quiet
from onevision.errors import InputError, OneVisionError
from onevision.files import read_json


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
    quiet()
    from benchmarks.parallel.check import check  # with torch and Megatron, which need not be there for the above

    with tempfile.TemporaryDirectory(prefix="onevision-parallel-") as folder:
        rows = check(Path(folder), layouts, pairs)
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


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
