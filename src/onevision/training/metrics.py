"""metrics.jsonl, TensorBoard and the progress line: one row a step, none missing, none twice, whatever interrupted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from onevision.data.ledger import digest
from onevision.files import storage_errors, write_text
from onevision.model.presets import Architecture
from onevision.progress import MARK, bar, duration
from onevision.recipe import Recipe
from onevision.training.flops import recompute_flops, step_flops
from onevision.training.history import read_metrics
from onevision.training.step import StepTotals

SCALARS = (
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "samples_per_second",
    "mfu",
    "hfu",
    "data_seconds",
    "memory_mb",
)


class Metrics:
    """Writer of a run's metrics, continuing after `step`: rows of later steps belong to a future that is run again."""

    def __init__(self, run: Path, step: int) -> None:
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        self.last = kept[-1] if kept else {}  # the newest row
        self._path = run / "metrics.jsonl"
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append one step."""
        self.last = row
        with storage_errors(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if "bad" in row:  # its figures are in part those of the step before: training/guard.py
            return
        with storage_errors(self._board.log_dir):
            for name in SCALARS:
                self._board.add_scalar(name, row[name], row["step"])
            for category, value in row["loss_by_category"].items():
                self._board.add_scalar(f"loss/{category}", value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        with storage_errors(self._path.parent):
            self._file.close()
            self._board.close()


def step_row(
    recipe: Recipe,
    architecture: Architecture,
    totals: StepTotals,
    *,
    seconds: float,
    peak: float,
    device: torch.device,
) -> dict[str, Any]:
    """The figures of a step that ends now and took `seconds` on devices of `peak` FLOP/s together; `time` is in
    seconds since 1970, `samples_digest` is of the ids of all samples (onevision/data/ledger.py)."""
    freeze = recipe.model.freeze
    flops = step_flops(architecture, totals.real, freeze)
    hardware_flops = step_flops(architecture, totals.slots, freeze)
    hardware_flops += recompute_flops(architecture, totals.slots, recipe.model)
    tokens, samples = sum(totals.real.segments), len(totals.real.segments)
    return {
        "loss": totals.loss,
        "tokens": tokens,
        "slots": sum(totals.slots.segments),
        "samples": samples,
        "patches": sum(totals.real.images),
        "target_tokens": sum(totals.target_tokens),
        "time": time.time(),
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "samples_per_second": samples / seconds,
        "flops": flops,
        "hardware_flops": hardware_flops,
        "mfu": flops / (peak * seconds),
        "hfu": hardware_flops / (peak * seconds),
        "samples_digest": digest(totals.sample_ids),
        "memory_mb": memory_mb(device),
    }


class TrainingProgress:
    """The line that a person watches: at the first and the last step, and every two seconds between."""

    def __init__(self, name: str, done: int, steps: int) -> None:
        self.name, self.done, self.steps = name, done, steps
        self._began = self._shown = time.monotonic()

    def show(self, row: dict[str, Any]) -> None:
        """Print the line of a row when it is time."""
        now, step = time.monotonic(), row["step"]
        if now - self._shown < 2 and step not in (self.done + 1, self.steps):
            return
        self._shown = now
        left = (now - self._began) / (step - self.done) * (self.steps - step)
        print(
            f"{MARK}{self.name:<9} {bar(step / self.steps)} step {step:,}/{self.steps:,}  loss {row['loss']:.4f}  "
            f"lr {row['lr']:.2e}  {row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.1%}  "
            f"ETA {duration(left)}",
            flush=True,
        )


def memory_mb(device: torch.device) -> float:
    """Peak memory of the device in MB; on a CPU the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return psutil.Process().memory_info().rss / 1e6
