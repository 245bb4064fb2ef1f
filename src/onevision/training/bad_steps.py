"""`bad_steps.jsonl` of a run folder: the steps whose loss or gradient was bad, with their samples. Needs no torch.

A row: `step`; `what` ("loss" or "gradient norm"), `value` (a number, or "nan" or "inf") and `threshold` (of a spike,
else null); `action`; `time` in seconds since 1970; `samples`, of all ranks and micro-batches, each with `id`, `shard`
and `category`. The actions:

    stop         the run ended
    skip         the update was not applied
    rewind       the run went back to a checkpoint, and leaves the batch out when it comes to it again
    recomputed   the value did not come again: the run went on with the one that did
    elsewhere    the value, or that it cannot be repeated, is to be checked on another node

A row of a step that was computed more than once has `nodes` too: those that may have erred, where that is known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onevision.errors import InputError
from onevision.files import write_text

NAME = "bad_steps.jsonl"


def read_bad_steps(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run, by step.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(run) / NAME
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        rows = [json.loads(line) for line in text.splitlines()]
        if all({"step", "action"} <= row.keys() for row in rows):
            return rows
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{path} was damaged: it is not a row of JSON a line; bring it back, or remove it") from None


class BadSteps:
    """The file of a run that goes on after `step`: rows of later steps belong to a future that is computed again, and
    are written again when it is as it was. Those of batches to leave out and of what hardware did stay."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / NAME
        self.rows = read_bad_steps(run)
        self.return_to(step)

    def return_to(self, step: int) -> None:
        """Drop what is computed again after `step`."""
        lasting = [row["action"] == "rewind" or "nodes" in row for row in self.rows]
        self._write([row for row, lasts in zip(self.rows, lasting, strict=True) if lasts or row["step"] <= step])

    def put(self, row: dict[str, Any]) -> None:
        """Add the row of a step, in place of an earlier one of that step."""
        others = [other for other in self.rows if other["step"] != row["step"]]
        self._write(sorted([*others, row], key=lambda one: one["step"]))

    def left_out(self) -> dict[int, dict[str, Any]]:
        """The rows of batches to leave out, by step."""
        return self._by_step([row for row in self.rows if row["action"] == "rewind"])

    def repeated(self) -> dict[int, dict[str, Any]]:
        """The rows of values that came again on the same nodes, or could not be repeated, by step."""
        return self._by_step([row for row in self.rows if "nodes" in row and row["action"] != "recomputed"])

    def _by_step(self, rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        return {row["step"]: {key: value for key, value in row.items() if key != "samples"} for row in rows}

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if rows != self.rows:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
            self.rows = rows
