"""The rows of metrics.jsonl, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, oldest first. A line that was cut off by a kill, or that was damaged since, is left out; those
    after it are not."""
    path = Path(run) / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # neither UTF-8 nor JSON
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
