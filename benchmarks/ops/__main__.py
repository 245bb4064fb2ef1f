"""`make bench-ops`: every op of cuda/ at real sizes on this machine's GPU, against a copy on it in the same run.

    python -m benchmarks.ops [out=DIR] [strict=1]

Figures and goals are printed as a table and written to benchmarks/results/ops.json, or to DIR. A section that fails is
named with the last lines of its traceback, and the others go on; the exit code is then 1. With strict=1 an unmet goal
gives exit code 1 too. A machine without a GPU: one line, exit code 2.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.ops import images, tokens
from benchmarks.ops.timing import Row, copy_bandwidth
from benchmarks.results import RESULTS, package_versions, show, write_results
from onevision.errors import InputError
from onevision.ops.library import here, load

SECTIONS: dict[str, Callable[[float], Iterator[Row]]] = {
    "patches": images.rows,
    "assemble": tokens.assemble_rows,
    "scatter": tokens.scatter_rows,
    "rotary": tokens.rotary_rows,
}


def measure() -> tuple[list[Row], dict[str, str]]:
    """Rows of all sections, and by section that failed the last lines of its traceback.

    Raises:
        InputError: there is no GPU, or the ops cannot be compiled for it.
    """
    if not torch.cuda.is_available():
        raise InputError("the benchmark of cuda/ needs a GPU, and this machine has none: run it on one")
    library = here()
    library.build()
    load(library)
    copy = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy on the device moves {copy / 1e9:.0f} GB/s", flush=True)
    rows: list[Row] = []
    failures = {}
    for name, section in SECTIONS.items():
        print(f"section: {name}", flush=True)
        try:
            rows += section(copy)  # what came before a failure stays
        except Exception:
            failures[name] = "\n".join(traceback.format_exc().splitlines()[-12:])
            print(f"section {name} failed:\n{failures[name]}", flush=True)
        torch.cuda.empty_cache()
    return rows, failures


def main(arguments: list[str]) -> int:
    """Measure, write and print; see the head comment."""
    settings = dict(text.partition("=")[::2] for text in arguments)
    if unknown := settings.keys() - {"out", "strict"}:
        print(f"error: unknown argument {unknown.pop()!r}; there are: out, strict", file=sys.stderr)
        return 2
    try:
        rows, failures = measure()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    properties = torch.cuda.get_device_properties(0)
    hardware = {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
    versions = package_versions("torch", "numpy", "numba") | {"cuda": str(torch.version.cuda)}
    folder = Path(settings.get("out", RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    path = write_results("ops", list(rows), versions, folder, hardware | ({"failures": failures} if failures else {}))
    show("ops of cuda/", list(rows))
    unmet = [row for row in rows if not row.met]
    print(f"{len(rows) - len(unmet)} of {len(rows)} rows meet their goals; written to {path}")
    return 1 if failures or (unmet and settings.get("strict") == "1") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
