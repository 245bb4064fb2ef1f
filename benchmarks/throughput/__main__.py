"""Throughput on this machine, one GPU: training steps of each stage, and peers on the same tokens.

    python -m benchmarks.throughput [key=value ...]

      model=1.7b               a preset; its recipes, or those of 8B with that preset. Default: the largest that fits
      rows=stage1_5,language,peers,calibration      of these and stage1, stage2, graphs; language: ours, text alone;
                               graphs: stage 1.5 with performance.cuda_graphs
      peers=NAME,NAME          of the peers in tries.py; default all
      micro_batches=4          a step; 0: the recipe's own global batch
      warmup=3, steps=10       steps not measured, and measured
      tries="A=1;B=2 C=3"      settings from the fastest to the most frugal: the first that fits is measured.
                               Default: tries.py
      profile=trace,memory     leave the profiler's trace, the allocator's history
      out=DIR                  throughput.json, throughput.png, and below rows/ logs and traces
                               (default benchmarks/results, and runs/throughput/rows)
      seconds=300              that a row may take
      kept=FILE                JSON list of rows of an earlier call; those that did not fail are not measured again
      strict=1                 an unmet goal gives exit code 1
      other key=value          overrides of the recipe

Every row is measured in a process of its own and printed and written as soon as it is there. On a cluster, and on all
GPUs of a machine: make bench.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS
from benchmarks.throughput.report import figures, show, write_report
from benchmarks.throughput.rows import lacks, measured_apart, peer_row, training_row
from benchmarks.throughput.tries import (
    default_model,
    gpu_memory,
    peer_tries,
    stage_recipe,
    training_tries,
    with_micro_batches,
)
from onevision.errors import InputError, OneVisionError
from onevision.files import read_json

OWN = {
    "model": "",
    "rows": "stage1_5,language,peers,calibration",
    "peers": "",
    "micro_batches": "4",
    "warmup": "3",
    "steps": "10",
    "tries": "",
    "profile": "",
    "out": "",
    "seconds": "300",
    "kept": "",
    "strict": "0",
}
STAGES = ("stage1", "stage1_5", "stage2")
OURS: dict[str, tuple[str, list[str]]] = {name: (name, []) for name in STAGES} | {
    "language": ("stage1_5", ["model.freeze=[vision,adapter]"]),
    "graphs": (
        "stage1_5",
        [
            *("performance.cuda_graphs=true", "performance.overlap_param_gather=false"),
            *("model.backend=torch", "model.recompute=none"),
        ],
    ),
}  # rows of our training: the stage, and what is set otherwise
Asked = tuple[str, dict[str, Any]]


def main(arguments: list[str]) -> int:
    """Measure the rows that were asked for."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    own = OWN | {key: value for key, _, value in (text.partition("=") for text in arguments) if key in OWN}
    overrides = [text for text in arguments if text.partition("=")[0] not in OWN]
    out, folder = Path(own["out"] or RESULTS), Path(own["out"] or "runs/throughput") / "rows"
    try:
        own["model"] = own["model"] or default_model(gpu_memory())
        rows = measure(own, overrides, folder, lambda rows: write_report(out, rows))
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show(rows)
    unmet = [row for row in figures(rows) if not row.met]
    broken = [row for row in rows if "failed" in row and row["what"] == "training"]  # a peer may be missing
    return 1 if broken or (unmet and own["strict"] == "1") else 0


def measure(
    own: dict[str, str], overrides: list[str], folder: Path, written: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """The rows, one after the other, with logs in `folder`; `written` hears of those that are there, should the next
    one never end.

    Raises:
        InputError: an unknown row, or an override that is wrong.
    """
    rows: list[dict[str, Any]] = []
    kept = {row["name"]: row for row in (read_json(own["kept"]) if own["kept"] else []) if "failed" not in row}
    for name, asked in list(specifications(own, overrides, folder)):
        absent = lacks(asked)
        if name in kept:
            rows.append(kept[name])
            print(f"{name}: kept", flush=True)
        elif absent:
            rows.append({"name": name, "what": asked["kind"], "failed": absent})
            print(f"{name}: not measured: {absent}", flush=True)
        else:
            rows.append(measured_apart(name, asked, folder, float(own["seconds"])))
        written(rows)
    return rows


def specifications(own: dict[str, str], overrides: list[str], folder: Path) -> Iterator[Asked]:
    """Name and specification of each row."""
    for name in own["rows"].split(","):
        if name in OURS:
            yield name, _training(name, own, overrides, folder)
        elif name == "peers":
            wanted = [peer for peer in own["peers"].split(",") if peer]
            known = peer_tries(own, overrides)
            for peer in wanted or known:
                if peer not in known:
                    raise InputError(f"peers={peer} is not one of {', '.join(known)}")
                yield peer, peer_row(known[peer])
        elif name == "calibration":
            attention = stage_recipe(own["model"], "stage1_5", overrides).model.attention
            yield name, {"kind": "calibration", "model": own["model"], "attention": attention}
        else:
            raise InputError(f"rows={name} is not one of {', '.join((*OURS, 'peers', 'calibration'))}")


def _training(name: str, own: dict[str, str], overrides: list[str], folder: Path) -> dict[str, Any]:
    stage, changed = OURS[name]
    recipe = stage_recipe(own["model"], stage, [*overrides, *changed])
    recipe = with_micro_batches(recipe, 1, int(own["micro_batches"]))
    settings = {
        "warmup": int(own["warmup"]),
        "steps": int(own["steps"]),
        "text_only": name == "language",
        "trace": "trace" in own["profile"],
        "memory": "memory" in own["profile"],
        "folder": str(folder / name),
    }
    chosen = any(entry.startswith("train.micro_batch_size=") for entry in overrides)
    return training_row(training_tries(recipe, own["tries"], 0 if chosen else gpu_memory()), settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
