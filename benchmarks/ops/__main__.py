"""`make bench-ops`: every op of cuda/ at real sizes on this machine's GPU, against a copy on it in the same run.

    python -m benchmarks.ops [out=DIR] [only=patches,assemble,scatter,rotary,peers] [strict=1]

Figures and goals are printed as a table and written to ops.json in benchmarks/results, or in DIR, after each row. A
section of `only` that fails is named with the last lines of its traceback, and the others go on; the exit code is then
1. With strict=1 an unmet goal gives exit code 1 too. A machine without a GPU: one line, exit code 2.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
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
    "peers": tokens.peer_rows,  # last: PyTorch compiles
}


def measure(
    names: Sequence[str], save: Callable[[list[Row], dict[str, str]], None]
) -> tuple[list[Row], dict[str, str]]:
    """Rows of the named sections, and by section that failed the last lines of its traceback; `save` is given both
    after each.

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
    failures: dict[str, str] = {}
    for name in names:
        print(f"section: {name}", flush=True)
        try:
            for row in SECTIONS[name](copy):  # what came before a failure stays
                rows.append(row)
                beside = f"{row.reference}: {row.reference_value:.4g}"
                print(f"{row.path}, {row.measure}: {row.value:.4g} {row.unit}, {beside}", flush=True)
                save(rows, failures)
        except Exception:
            failures[name] = "\n".join(traceback.format_exc().splitlines()[-12:])
            print(f"section {name} failed:\n{failures[name]}", flush=True)
        torch.cuda.empty_cache()
        save(rows, failures)
    return rows, failures


def main(arguments: list[str]) -> int:
    """Measure, write and print; see the head comment."""
    settings = dict(text.partition("=")[::2] for text in arguments)
    names = settings.get("only", ",".join(SECTIONS)).split(",")
    if unknown := [*(settings.keys() - {"out", "only", "strict"}), *(name for name in names if name not in SECTIONS)]:
        print(f"error: unknown {unknown[0]!r}; there are: out, strict, only={','.join(SECTIONS)}", file=sys.stderr)
        return 2
    folder = Path(settings.get("out", RESULTS))
    try:
        rows, failures = measure(names, lambda rows, failures: _save(folder, rows, failures))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show("ops of cuda/", list(rows))
    unmet = [row for row in rows if not row.met]
    print(f"{len(rows) - len(unmet)} of {len(rows)} rows meet their goals; written to {folder / 'ops.json'}")
    return 1 if failures or (unmet and settings.get("strict") == "1") else 0


def _save(folder: Path, rows: list[Row], failures: dict[str, str]) -> None:
    properties = torch.cuda.get_device_properties(0)
    hardware = {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
    versions = package_versions("torch", "numpy", "numba") | {"cuda": str(torch.version.cuda)}
    folder.mkdir(parents=True, exist_ok=True)
    write_results("ops", list(rows), versions, folder, hardware | ({"failures": failures} if failures else {}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
