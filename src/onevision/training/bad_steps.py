"""`bad_steps.jsonl` of a run folder: the steps whose loss or gradient was bad, with their samples. Needs no torch.

A row: `step`; `what` ("loss" or "gradient norm"), `value` (a number, or "nan" or "inf") and `threshold` (of a spike,
else null); `action`; `time` in seconds since 1970; `samples`, of all ranks and micro-batches, each with `id`, `shard`
and `category`. The actions:

    stop         the run ended
    skip         the update was not applied
    rewind       the run went back to a checkpoint, and leaves the batch out when it comes to it again
    recomputed   the value did not come again: the run went on with the one that did
    elsewhere    the value, or that it cannot be repeated, is to be checked on another node; `nodes` are those to leave
                 out, where it is known which computed it
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from onevision.files import write_text

NAME = "bad_steps.jsonl"
LASTING = ("rewind", "elsewhere")  # what is decided about a step that is still to come


def read_bad_steps(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, by step."""
    path = Path(run) / NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


class BadSteps:
    """The file of a run that goes on after `step`: rows of later steps belong to a future that is computed again, and
    are written again when it is as it was, unless what they decide is about that future."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / NAME
        self.rows = read_bad_steps(run)
        self.return_to(step)

    def return_to(self, step: int) -> None:
        """Drop what is computed again after `step`."""
        kept = [row for row in self.rows if row["step"] <= step or row["action"] in LASTING]
        self._write(kept)

    def put(self, row: dict[str, Any]) -> None:
        """Add the row of a step, in place of an earlier one of that step."""
        others = [other for other in self.rows if other["step"] != row["step"]]
        self._write(sorted([*others, row], key=lambda one: one["step"]))

    def with_action(self, actions: Collection[str]) -> dict[int, dict[str, Any]]:
        """The rows of some actions without their samples, by step."""
        return {
            row["step"]: {key: value for key, value in row.items() if key != "samples"}
            for row in self.rows
            if row["action"] in actions
        }

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if rows != self.rows:
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self.rows = rows
