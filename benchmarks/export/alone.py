"""An export or an import in a process of its own, which prints its seconds and its peak memory as JSON.

python -m benchmarks.export.alone export RUN FOLDER TOKENIZER
python -m benchmarks.export.alone import FOLDER RUN PRESET
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from jobs.ranks import ready_model


def main(arguments: list[str]) -> int:
    """See the head comment."""
    ready_model()
    from onevision.convert.exporting import export
    from onevision.convert.importing import import_exported
    from onevision.recipe import DataRecipe, ModelRecipe, Recipe

    what, source, target, third = arguments
    start = time.monotonic()
    if what == "export":
        export(source, DataRecipe(tokenizer=third), target)
    else:
        import_exported(source, target, Recipe(model=ModelRecipe(preset=third)))
    seconds = time.monotonic() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
