"""`make bench-packing`: solver, packs, step and files, beside peers and physical limits of the same run.

    python -m benchmarks.packing [samples=85000000] [strict=1] [folder=…]

Figures and goals are printed as a table and written to benchmarks/results/packing.json. With strict=1 an unmet goal
gives exit code 1. The corpus and its packs are written below `folder` (default: the system's temporary folder) and
removed at the end. Rates of code on one core are by CPU time; what waits for disks or ranks is by the clock.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.packing import cases, synthetic
from benchmarks.results import Row, package_versions, settings, show, write_results


def main(arguments: list[str]) -> int:
    """Run all cases; see the head comment."""
    given = settings(arguments, "samples", "strict", "folder")
    samples = int(given.get("samples", 85_000_000))
    with tempfile.TemporaryDirectory(prefix="onevision-packing-", dir=given.get("folder")) as name:
        folder = Path(name)
        print(f"input: the lengths of {samples:,} samples", flush=True)
        synthetic.write(folder / "corpus", samples)
        rows: list[Row] = []
        for case in cases.CASES:
            print(f"case: {(case.__doc__ or '').splitlines()[0]}", flush=True)
            rows += case(folder)
    show("packing", rows)
    path = write_results("packing", rows, package_versions("numpy", "numba", "h5py", "mpi4py", "mpich", "trl"))
    print(f"{sum(row.met for row in rows)} of {len(rows)} goals met; written to {path}")
    return 1 if given.get("strict") == "1" and not all(row.met for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
