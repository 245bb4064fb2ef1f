"""The files of checkpoints, without what is in them: names, digests, completeness. Needs neither torch nor Megatron.

A checkpoint is complete or not there: `checkpoints/step_00000100/` appears by one rename after everything in it was
written, `checkpoint.json` lists its files with size and digest.

Some of its files are pickles, which can run any code when they are loaded: whoever loads a checkpoint has it from
`find` or `newest` with `verify`, or has called `verify`: it reads no pickle, and accepts only files that are as they
were written. A checkpoint from elsewhere is to be trusted like a program; weights in safetensors (`make import`) are
not pickles.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onevision.errors import DataError, InputError
from onevision.files import read_json, storage_errors, write_json
from onevision.fingerprint import file_digest, for_each_file, value_digest
from onevision.model.presets import Architecture

CHECKPOINT_FILE = "checkpoint.json"
LOADED = (".metadata", "common.pt", "metadata.json")  # what Megatron reads beside *.distcp; the first two are pickles
STEP_NAME = re.compile(r"step_(\d{8})")


def step_folder(run: str | Path, step: int) -> Path:
    """Folder of the checkpoint of `step` in a run folder."""
    return Path(run) / "checkpoints" / f"step_{step:08d}"


def checkpoint_steps(run: str | Path) -> list[int]:
    """Steps of the checkpoints in a run folder, oldest first, complete by name (not yet verified)."""
    folder = Path(run) / "checkpoints"
    names = [STEP_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def verify_sizes(folder: Path) -> dict[str, Any]:
    """Content of checkpoint.json, after it was found whole and every file with its size; what the files hold is not
    read, so that it takes no time at any size.

    Raises:
        DataError: checkpoint.json is missing or altered, or a file is missing or truncated.
    """
    if not (folder / CHECKPOINT_FILE).exists():
        raise DataError(f"{folder} has no {CHECKPOINT_FILE}: it was not written to its end")
    try:
        content = read_json(folder / CHECKPOINT_FILE)
    except InputError as error:
        raise DataError(str(error)) from None
    if not isinstance(content, dict) or content.get("fingerprint") != _fingerprint(content):
        raise DataError(f"{folder / CHECKPOINT_FILE} was altered: its content is not that of its fingerprint")
    if not _well_formed(content):
        raise DataError(f"{folder / CHECKPOINT_FILE} was altered: it does not say what a checkpoint is made of")
    for path in folder.iterdir():
        if path.name not in content["files"] and (path.name in LOADED or path.suffix == ".distcp"):
            raise DataError(f"{path} is no file of this checkpoint: {CHECKPOINT_FILE} does not list it")
    for name, entry in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(f"{path} has {size} bytes instead of {entry['bytes']}")
    return content


def verify(folder: Path) -> dict[str, Any]:
    """Content of checkpoint.json, after every file was found with its size and digest.

    Raises:
        DataError: a file is missing, truncated or altered, or cannot be read.
    """
    content = verify_sizes(folder)

    def check(path: Path) -> None:
        try:
            digest = file_digest(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        check_digest(folder, content, path.name, digest)

    for_each_file(check, [folder / name for name in content["files"]])
    return content


def check_digest(folder: Path, content: dict[str, Any], name: str, digest: str) -> None:
    """Refuse a file whose digest is another one than checkpoint.json, of which this is the content, says.

    Raises:
        DataError: it is.
    """
    if digest != content["files"][name]["digest"]:
        raise DataError(f"{folder / name} was altered: its digest is not that of {CHECKPOINT_FILE}")


def newest(run: str | Path, check: Callable[[Path], dict[str, Any]] = verify) -> tuple[Path, dict[str, Any]] | None:
    """Folder and content of the newest checkpoint that passes `check`; broken ones are skipped with a message."""
    for step in reversed(checkpoint_steps(run)):
        folder = step_folder(run, step)
        try:
            return folder, check(folder)
        except DataError as error:
            print(f"skipping checkpoint {folder}: {error}", flush=True)
    return None


def newest_of_run(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """What a run goes on from; None for one that has no checkpoint yet.

    Raises:
        DataError: it has some, and none is whole. What was computed in days is not thrown away without asking.
    """
    found, steps = newest(run), checkpoint_steps(run)
    if found is None and steps:
        raise DataError(
            f"{run / 'checkpoints'} holds no checkpoint that is whole, and is not started over by itself (broken: "
            f"those of steps {', '.join(map(str, steps))}): bring one back, or remove the folder to start over"
        )
    return found


def find(path: str | Path, check: Callable[[Path], dict[str, Any]] = verify) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `path` names: a checkpoint folder, or a run folder (its newest one that passes `check`).

    Raises:
        InputError: there is none.
        DataError: the named one is broken.
    """
    folder = Path(path)
    if STEP_NAME.fullmatch(folder.name) and not folder.exists():
        steps = ", ".join(map(str, checkpoint_steps(folder.parent.parent))) or "none"
        raise InputError(f"{folder} does not exist; the run has checkpoints of steps: {steps}")
    if (folder / CHECKPOINT_FILE).exists() or STEP_NAME.fullmatch(folder.name):
        return folder, check(folder)
    found = newest(folder, check)
    if found is None:
        raise InputError(f"{path} holds no checkpoint: run the step that trains or imports it first")
    return found


def check_architecture(folder: Path, content: dict[str, Any], architecture: Architecture) -> None:
    """Refuse a checkpoint of another model size.

    Raises:
        InputError: naming the sizes that differ.
    """
    found, wanted = content["architecture"], asdict(architecture)
    different = [
        f"{part}.{name}={found[part].get(name)} instead of {value}"
        for part in ("vision", "language")
        for name, value in wanted[part].items()
        if found[part].get(name) != value
    ]
    if different:
        raise InputError(f"{folder} is a checkpoint of model {found['name']}: " + ", ".join(different))


def nothing_awaited(step: int) -> bool:
    """No checkpoint is kept for its step."""
    return False


def commit(
    temporary: Path,
    run: Path,
    step: int,
    architecture: Architecture,
    keep: int,
    digests: Mapping[str, str] = MappingProxyType({}),
    awaited: Callable[[int], bool] = nothing_awaited,
) -> Path:
    """Make a written folder the checkpoint of `step`, and `prune`; returns its folder.

    `digests` of files, by name, that are known already; the others are read.
    """
    folder = step_folder(run, step)
    written = sorted(temporary.iterdir())
    found = for_each_file(lambda path: digests.get(path.name) or file_digest(path), written)
    files = {
        path.name: {"bytes": path.stat().st_size, "digest": digest}
        for path, digest in zip(written, found, strict=True)
    }
    content = {"step": step, "architecture": asdict(architecture), "files": files}
    write_json(temporary / CHECKPOINT_FILE, content | {"fingerprint": _fingerprint(content)})
    _sync(temporary)
    if folder.exists():  # a broken one of the same step
        _remove(folder)
    temporary.rename(folder)
    prune(run, step, keep, awaited)
    return folder


def prune(run: str | Path, step: int, keep: int, awaited: Callable[[int], bool] = nothing_awaited) -> None:
    """Remove all checkpoints up to that of `step` but the newest `keep`, and those that are `awaited(step)`: by an
    evaluation that has not been there yet. Later ones are broken: they do not count."""
    for old in [number for number in checkpoint_steps(run) if number <= step][:-keep]:
        if not awaited(old):
            _remove(step_folder(run, old))


def release(run: str | Path, step: int, keep: int) -> None:
    """Remove the checkpoint of a step that no evaluation waits for any more, unless it is one of the newest `keep`.
    For a run that has ended: while it trains, `prune` does that."""
    if step in checkpoint_steps(run)[:-keep]:
        _remove(step_folder(run, step))


def remove_leftovers(run: str | Path) -> None:
    """Remove what was being written or removed when a process died."""
    for leftover in (Path(run) / "checkpoints").glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; from the first moment on it is none: what a kill leaves of it has a leftover's name."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.rmtree(folder.rename(hidden))


def _well_formed(content: dict[str, Any]) -> bool:
    """Whether checkpoint.json has what is read of it, and names no file of another folder."""
    files, model = content.get("files"), content.get("architecture")
    return (
        isinstance(content.get("step"), int)
        and isinstance(model, dict)
        and isinstance(model.get("name"), str)
        and all(isinstance(model.get(part), dict) for part in ("vision", "language"))
        and isinstance(files, dict)
        and all(
            name not in ("", ".", "..") and "/" not in name and isinstance(entry, dict)
            and isinstance(entry.get("bytes"), int) and isinstance(entry.get("digest"), str)
            for name, entry in files.items()
        )
    )  # fmt: skip


def _fingerprint(content: dict[str, Any]) -> str:
    return value_digest({key: value for key, value in content.items() if key != "fingerprint"})


def _sync(folder: Path) -> None:
    """Flush the files of a folder and the folder itself to the disk."""
    with storage_errors(folder):
        for path in [*folder.iterdir(), folder]:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
