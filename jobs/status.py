"""What each run is doing, read from its folder alone."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jobs.arguments import run_recipe
from onevision.progress import duration


def run(arguments: list[str]) -> int:
    """python -m jobs status [RUN ...]

    A table of the given run folders, or of all below runs/: state, step, loss, tokens/s of the last step, ETA.
    """
    folders = [Path(argument) for argument in arguments] or sorted(
        path.parent for path in Path("runs").glob("**/run.json")
    )
    if not folders:
        print("no runs yet: `make demo` makes the first ones")
        return 0
    table = Table(box=SIMPLE_HEAD)
    for column in ("run", "state", "step", "loss", "tokens/s", "ETA"):
        left = column in ("run", "state")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "state")
    for folder in folders:
        table.add_row(*_row(folder))
    Console().print(table)
    return 0


def _row(folder: Path) -> list[str]:
    recipe = run_recipe(folder, [])
    last = _last_row(folder / "metrics.jsonl")
    state = _state(folder)
    if recipe.stage == "stage0":
        return [str(folder), state, "", "", "", ""]
    if last is None:
        return [str(folder), state, f"0/{recipe.train.steps}", "", "", ""]
    left = (recipe.train.steps - last["step"]) * last["step_seconds"]
    return [
        str(folder),
        state,
        f"{last['step']}/{recipe.train.steps}",
        f"{last['loss']:.4f}",
        f"{last['tokens_per_second']:,.0f}",
        duration(left) if state == "running" else "",
    ]


def _state(folder: Path) -> str:
    if (folder / "step.json").exists():
        return "finished"
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return "not started"
    except BlockingIOError:
        return "running"
    return "stopped; make resume continues it"


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last whole row, read from the end of the file: a run of days has a large one."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65_536))
        for line in reversed(file.read().split(b"\n")):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                return row
    return None
