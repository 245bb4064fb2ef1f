"""Throughput on this machine, one GPU: training steps of each stage, and peers on the same tokens.

    python -m benchmarks.throughput [key=value ...]

      model=8b                 a preset; its recipes, or those of 8B with that preset
      rows=stage1_5,language,peers     of stage1, stage1_5, stage2, language (ours, text alone), peers
      micro_batches=4          a step; 0: the recipe's own global batch
      warmup=3, steps=10       steps not measured, and measured
      tries="A=1;B=2 C=3"      settings from the fastest to the most frugal: the first that fits is measured
      profile=trace,memory     leave the profiler's trace, the allocator's history
      out=FILE, folder=DIR     results (default benchmarks/results/throughput-MODEL), logs and traces
      seconds=600              that a row may take
      other key=value          overrides of the recipe

On a cluster, and on all GPUs of a machine: make bench.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS
from benchmarks.throughput.report import show, write_report
from benchmarks.throughput.rows import measured_apart, peer_row, scratch, training_row
from benchmarks.throughput.tries import peer_tries, stage_recipe, training_tries, with_micro_batches
from onevision.errors import InputError, OneVisionError

OWN = {
    "model": "8b",
    "rows": "stage1_5,language,peers",
    "micro_batches": "4",
    "warmup": "3",
    "steps": "10",
    "tries": "",
    "profile": "",
    "out": "",
    "folder": "",
    "seconds": "600",
}
STAGES = ("stage1", "stage1_5", "stage2")


def main(arguments: list[str]) -> int:
    """Measure the rows that were asked for."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    own = OWN | {key: value for key, _, value in (text.partition("=") for text in arguments) if key in OWN}
    overrides = [text for text in arguments if text.partition("=")[0] not in OWN]
    try:
        with scratch() as temporary:
            folder = Path(own["folder"] or temporary)
            folder.mkdir(parents=True, exist_ok=True)
            rows = measure(own, overrides, folder)
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    out = Path(own["out"]) if own["out"] else RESULTS / f"throughput-{own['model']}"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_report(out, rows)
    show(rows)
    return 1 if any("failed" in row for row in rows) else 0


def measure(own: dict[str, str], overrides: list[str], folder: Path) -> list[dict[str, Any]]:
    """The rows, each from a process of its own."""
    rows = []
    for name in own["rows"].split(","):
        if name in (*STAGES, "language"):
            stage = "stage1_5" if name == "language" else name
            recipe = stage_recipe(own["model"], stage, overrides)
            if name == "language":
                recipe = replace(recipe, model=replace(recipe.model, freeze=["vision", "adapter"]))
            recipe = with_micro_batches(recipe, 1, int(own["micro_batches"]))
            settings = {
                "warmup": int(own["warmup"]),
                "steps": int(own["steps"]),
                "text_only": name == "language",
                "trace": "trace" in own["profile"],
                "memory": "memory" in own["profile"],
                "folder": str(folder),
            }
            asked = training_row(training_tries(recipe, own["tries"]), settings)
            rows.append(measured_apart(name, asked, folder, float(own["seconds"])))
        elif name == "peers":
            for peer, tries in peer_tries(own, overrides).items():
                rows.append(measured_apart(peer, peer_row(tries), folder, float(own["seconds"])))
        else:
            raise InputError(f"rows={name} is not one of {', '.join((*STAGES, 'language', 'peers'))}")
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
