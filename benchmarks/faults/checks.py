"""What must be so after a disturbance, whatever it was: the undisturbed curve, and nothing left behind anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from onevision.errors import DataError
from onevision.training.checkpoint_files import STEP_NAME, checkpoint_steps, step_folder, verify
from onevision.training.history import read_metrics

EQUAL = ("loss", "grad_norm", "lr", "tokens", "samples", "skipped", "loss_by_category")
# What a run folder holds. Everything else is a leftover.
KNOWN = {
    "bad_steps.jsonl",
    "checkpoints",
    "environment.json",
    "lineage.json",
    "log",
    "metrics.jsonl",
    "recipe.yaml",
    "run.json",
    "step.json",
    "tensorboard",
    ".lock",
}
_TRACE = re.compile(r"^(Traceback \(most recent call last\)|(Current thread|Thread) 0x|  File \")", re.MULTILINE)

State = dict[str, tuple[int, int, int]]


def curve_problems(run: Path, reference: Path, steps: int) -> list[str]:
    """How the rows of a run differ from those of the undisturbed one: a step missing or doubled, another value."""
    rows, expected = read_metrics(run), read_metrics(reference)
    found = [row["step"] for row in rows]
    if found != list(range(1, steps + 1)):
        return [f"metrics.jsonl has steps {found} instead of 1 to {steps}"]
    return [
        f"step {row['step']}: {key}={row[key]} instead of {other[key]}"
        for row, other in zip(rows, expected, strict=True)
        for key in EQUAL
        if row[key] != other[key]
    ]


def leftovers(run: Path, keep: int) -> list[str]:
    """Files of a finished run that should not be there, and checkpoints that are not whole."""
    problems = [f"{path} was left behind" for path in run.iterdir() if path.name not in KNOWN]
    for path in (run / "checkpoints").iterdir():
        if not STEP_NAME.fullmatch(path.name):
            problems.append(f"{path} was left behind")
    steps = checkpoint_steps(run)
    if len(steps) > keep:
        problems.append(f"{run} has {len(steps)} checkpoints instead of {keep}")
    for step in steps:
        folder = step_folder(run, step)
        try:
            names = set(verify(folder)["files"]) | {"checkpoint.json"}
        except DataError as error:
            problems.append(f"a broken checkpoint was left behind: {error}")
            continue
        problems += [f"{path} was left behind" for path in folder.iterdir() if path.name not in names]
    return problems


def shown_problems(shown: str) -> list[str]:
    """A traceback, or the stack of a thread, in what a person is shown."""
    found = _TRACE.search(shown)
    return [f"shown to the user: {found[0]}"] if found else []


def state(folder: Path) -> State:
    """Size, time of change and inode of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        if not path.is_dir():
            found[str(path)] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Files outside the run folder that were written, added or removed."""
    return [
        f"{path} was written outside the run"
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def strays(folder: Path) -> list[str]:
    """What lies in folders that should be empty; PyTorch makes the folder of a cache when it is imported."""
    found = [path for path in folder.rglob("*") if path.parent != folder and "torchinductor_" not in path.name]
    return [f"{path} was written outside the run" for path in found]
