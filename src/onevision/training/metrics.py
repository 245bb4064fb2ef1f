"""metrics.jsonl, TensorBoard and the progress line: one row a step, none missing, none twice, whatever interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from onevision.files import storage_errors, write_text

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


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, oldest first; a last line that was cut off by a kill is left out."""
    path = Path(run) / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Metrics:
    """Writer of a run's metrics, continuing after `step`: rows of later steps belong to a future that is run again."""

    def __init__(self, run: Path, step: int) -> None:
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        self._path = run / "metrics.jsonl"
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append one step."""
        with storage_errors(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        for name in SCALARS:
            self._board.add_scalar(name, row[name], row["step"])
        for category, value in row["loss_by_category"].items():
            self._board.add_scalar(f"loss/{category}", value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()


def memory_mb(device: torch.device) -> float:
    """Peak memory of the device in MB; on a CPU the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return psutil.Process().memory_info().rss / 1e6
