"""The rows of metrics.jsonl, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
