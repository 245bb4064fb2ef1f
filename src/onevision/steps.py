"""A step: a pure function from fingerprinted inputs to a fingerprinted output folder.

A step whose inputs have not changed is skipped; one that was interrupted leaves nothing but a temporary folder, which
the next run removes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.errors import InputError
from onevision.files import read_json, storage_errors, write_json
from onevision.fingerprint import value_digest


@dataclass(frozen=True)
class StepResult:
    """What a step left: its folder, its summary, and whether it had nothing to do."""

    folder: Path
    summary: dict[str, Any]
    seconds: float
    skipped: bool


def run_step(
    name: str, folder: str | Path, inputs: dict[str, Any], build: Callable[[Path], dict[str, Any]]
) -> StepResult:
    """Run `build(temporary_folder) -> summary` unless `folder` already holds the result for the same `inputs`.

    `inputs` is a JSON value that names everything the output depends on: settings and the fingerprints of files.
    `folder/step.json` keeps it with the summary. The new folder takes the place of an older one in one rename.

    Raises:
        InputError: `folder` holds something else than the output of a step.
    """
    folder = Path(folder)
    key = value_digest([name, inputs])
    done = folder / "step.json"
    if done.exists():
        record = read_json(done)
        if record.get("key") == key:
            return StepResult(folder, record["summary"], record["seconds"], skipped=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something that no step has made, and would be replaced: name another folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    old = folder.with_name(f".{folder.name}.old")
    start = time.monotonic()
    with storage_errors(folder):
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            summary = build(temporary)
            seconds = time.monotonic() - start
            record = {"step": name, "key": key, "inputs": inputs, "summary": summary, "seconds": seconds}
            write_json(temporary / "step.json", record)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    return StepResult(folder, summary, seconds, skipped=False)


def forget(folder: str | Path) -> None:
    """Have the step of `folder` run again, whatever its inputs; it stays a step's output, which a step may replace."""
    done = Path(folder) / "step.json"
    write_json(done, read_json(done) | {"key": ""})


def step_summary(folder: str | Path) -> dict[str, Any]:
    """Summary of a finished step.

    Raises:
        InputError: the folder is not the output of a finished step.
    """
    done = Path(folder) / "step.json"
    if not done.exists():
        raise InputError(f"{folder} is not a finished step (no step.json): run the step that makes it first")
    return read_json(done)["summary"]
