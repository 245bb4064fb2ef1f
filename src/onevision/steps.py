"""A step: a pure function from fingerprinted inputs to a fingerprinted output folder.

A step whose inputs have not changed is skipped; one that was interrupted leaves nothing but a temporary folder, which
the next run removes, or goes on with when the step is made of parts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.errors import DataError, InputError
from onevision.files import behind_link, check_name, read_json, read_record, replace_folder, storage_errors, write_json
from onevision.fingerprint import value_digest
from onevision.locks import step_writer
from onevision.ranks import ALONE, Ranks


@dataclass(frozen=True)
class StepResult:
    """What a step left: its folder, its summary, and whether it had nothing to do."""

    folder: Path
    summary: dict[str, Any]
    seconds: float
    skipped: bool


def run_step(
    name: str,
    folder: str | Path,
    inputs: dict[str, Any] | Callable[[], dict[str, Any]],
    build: Callable[[Path], dict[str, Any]],
) -> StepResult:
    """Run `build(temporary_folder) -> summary` unless `folder` already holds the result for the same `inputs`.

    `inputs` is a JSON value that names everything the output depends on: settings and the fingerprints of files.
    `folder/step.json` keeps it with the summary. The new folder takes the place of an older one in one rename.
    `inputs` may be a call that gives them: where there is no older output it is made after `build`, so that files may
    be fingerprinted while `build` reads them.

    Raises:
        InputError: `folder` holds something else than an output of this step, or has no name to make it beside.
        Busy: another process is making it.
    """
    folder = behind_link(folder)
    _refuse_foreign(name, folder)
    if callable(inputs) and (folder / "step.json").exists():
        inputs = inputs()
    key = "" if callable(inputs) else value_digest([name, inputs])
    finished = _finished(name, folder, key)
    if finished is not None:
        return finished
    temporary = folder.with_name(f".{folder.name}.tmp")
    start = time.monotonic()
    with storage_errors(folder), step_writer(folder):
        finished = _finished(name, folder, key)  # by another process, which this one has waited for
        if finished is not None:
            return finished
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            summary = build(temporary)
            known = inputs() if callable(inputs) else inputs
            seconds = time.monotonic() - start
            record = _record(name, value_digest([name, known]), known, summary, seconds)
            _put_in_place(temporary, folder, record)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return StepResult(folder, summary, seconds, skipped=False)


def run_parts(
    name: str,
    folder: str | Path,
    inputs: dict[str, Any],
    parts: int,
    build: Callable[[Path, int], dict[str, Any]],
    finish: Callable[[Path, list[dict[str, Any]]], dict[str, Any]],
    ranks: Ranks = ALONE,
    prepare: Callable[[Path], None] = lambda work: None,
) -> StepResult:
    """As `run_step`, for a step made of `parts` that `ranks` share and that an interrupted step need not do again.

    `build(work_folder, k) -> what is known of part k` leaves files that have their names once they are whole; they
    depend on `inputs` and k alone, never on the rank that makes them. `finish(work_folder, known of all parts) ->
    summary` is called on rank 0 when all parts are there. The work folder stands beside `folder` and survives until
    then; one that belongs to other `inputs` is removed. `prepare(work_folder)` is called on every rank before that,
    also when an interrupted step goes on: for what all parts need and the ranks find together.

    Raises:
        InputError, Busy: as `run_step`.
    """
    folder = behind_link(folder)
    key = value_digest([name, inputs, parts])
    finished = ranks.first(_finished(name, folder, key) if ranks.rank == 0 else None)
    if finished is not None:
        return finished
    work = folder.with_name(f".{folder.name}.parts")
    start = time.monotonic()
    with storage_errors(folder), step_writer(folder) if ranks.rank == 0 else nullcontext():
        finished = ranks.first(_finished(name, folder, key) if ranks.rank == 0 else None)  # by one that was waited for
        if finished is not None:
            return finished
        if ranks.rank == 0:
            _enter(work, key)
        ranks.wait()
        prepare(work)
        missing = [k for k in range(parts) if not _known(work, k).exists()]
        for k in ranks.first(missing)[ranks.rank :: ranks.size]:
            write_json(_known(work, k), build(work, k))
        ranks.wait()
        record: dict[str, Any] = {}
        if ranks.rank == 0:
            summary = finish(work, [read_json(_known(work, k)) for k in range(parts)])
            for path in [work / _KEY, *(_known(work, k) for k in range(parts))]:
                path.unlink(missing_ok=True)
            record = _record(name, key, inputs, summary, time.monotonic() - start)
            _put_in_place(work, folder, record)
        record = ranks.first(record)
    return StepResult(folder, record["summary"], record["seconds"], skipped=False)


_KEY = "key.json"


def _refuse_foreign(name: str, folder: Path) -> None:
    """Let a step replace what it made itself before, and nothing else.

    Raises:
        InputError: the folder holds something that no step has made or that another one has, such as a corpus or a run,
            or is "." or "..".
    """
    check_name(folder)
    if (folder / "step.json").exists():
        maker = read_record(folder / "step.json", step=str)["step"]
        if maker != name:
            raise InputError(f"{folder} holds what {maker} has made, and {name} would replace it: name another folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something that no step has made, and would be replaced: name another folder")


def _finished(name: str, folder: Path, key: str) -> StepResult | None:
    """What the folder holds if it is the output for `key`.

    Raises:
        InputError: as `_refuse_foreign`.
    """
    _refuse_foreign(name, folder)
    if (folder / "step.json").exists():
        record = _done(folder)
        if record["key"] == key:
            return StepResult(folder, record["summary"], record["seconds"], skipped=True)
    return None


def _done(folder: Path) -> dict[str, Any]:
    """What step.json of a folder says.

    Raises:
        InputError: it was altered.
    """
    return read_record(folder / "step.json", key=str, summary=dict, seconds=(int, float))


def _record(name: str, key: str, inputs: dict[str, Any], summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {"step": name, "key": key, "inputs": inputs, "summary": summary, "seconds": seconds}


def _put_in_place(made: Path, folder: Path, record: dict[str, Any]) -> None:
    """Let the folder `made` take the place of `folder`."""
    write_json(made / "step.json", record)
    replace_folder(made, folder)


def _enter(work: Path, key: str) -> None:
    """Make the work folder, or go on with the one of an earlier start with the same key."""
    known = work / _KEY
    if not known.exists() or read_json(known) != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(known, key)
    for leftover in work.glob(".*.tmp*"):
        leftover.unlink()


def _known(work: Path, k: int) -> Path:
    """What is known of a part; it is there once the part is whole."""
    return work / f"part-{k:05d}.json"


def forget_part(work: str | Path, k: int) -> None:
    """Have part k of a step that is not finished be made again, from within its `finish`, which then fails."""
    _known(Path(work), k).unlink(missing_ok=True)


def forget(folder: str | Path) -> None:
    """Have the step of `folder` run again, whatever its inputs; it stays a step's output, which a step may replace."""
    write_json(Path(folder) / "step.json", _done(Path(folder)) | {"key": ""})


def forget_damaged(folder: str | Path, check: Callable[[], object], what: str, report: Callable[[str], None]) -> None:
    """Have the step of `folder` run again when `check()`, which opens what it wrote, finds it damaged; `report` gets a
    line that begins with `what`.
    """
    if not (Path(folder) / "step.json").exists():
        return
    try:
        check()
    except (DataError, InputError) as error:
        report(f"{what}: {error}")
        forget(folder)


def step_summary(folder: str | Path) -> dict[str, Any]:
    """Summary of a finished step.

    Raises:
        InputError: the folder is not the output of a finished step.
    """
    done = Path(folder) / "step.json"
    if not done.exists():
        raise InputError(f"{folder} is not a finished step (no step.json): run the step that makes it first")
    summary: dict[str, Any] = read_record(done, summary=dict)["summary"]
    return summary
