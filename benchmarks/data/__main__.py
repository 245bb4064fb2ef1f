"""`make bench-data`: images to patches, lengths of samples, the loader; each beside its peers of the same run.

    python -m benchmarks.data [fast=PYTHON] [strict=1]

`fast` names a Python with torch, torchvision and transformers in which Hugging Face's fast image processor runs. With
strict=1 an unmet goal gives exit code 1.
"""

from __future__ import annotations

import os
import sys

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")  # before they are loaded

from benchmarks.data import images, lengths, loader
from benchmarks.results import settings


def main(arguments: list[str]) -> int:
    """Run all three."""
    given = settings(arguments, "fast", "strict")
    found = images.main(given.get("fast", sys.executable)) + lengths.main() + loader.main()
    unmet = [row for row in found if not row.met]
    for row in unmet:
        print(f"not met: {row.path}: {row.measure} is {row.value:.4g} {row.unit}; {row.goal}")
    print(f"{len(found) - len(unmet)} of {len(found)} rows meet their goals")
    return 1 if unmet and given.get("strict") == "1" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
