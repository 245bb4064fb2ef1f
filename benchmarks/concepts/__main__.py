"""`make bench-concepts`: the search for concepts and the balanced draw, each beside its peers of the same run.

    python -m benchmarks.concepts [quick=1] [strict=1]

quick=1 takes small inputs and writes no results. With strict=1 an unmet goal gives exit code 1.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before it is read: threads that wait leave the cores to others

from benchmarks.concepts import balance, search
from benchmarks.results import settings


def main(arguments: list[str]) -> int:
    """Run both."""
    settings(arguments, "quick", "strict")
    return max(search.main(arguments), balance.main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
