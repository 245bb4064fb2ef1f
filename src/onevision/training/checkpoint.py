"""Checkpoints: Megatron's dist_checkpointing, written beside and renamed, checked by digest before they are read.

A checkpoint is complete or not there: `checkpoints/step_00000100/` appears by one rename after everything in it was
written, `checkpoint.json` lists its files with size and digest. Nothing in a training step draws random numbers and
the loader is a pure function of the step, so model, optimizer, scheduler and the step number are the whole state.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint import CheckpointException

from onevision.errors import DataError, InputError, OneVisionError, StorageError
from onevision.files import FULL, read_json, storage_errors, write_json
from onevision.fingerprint import file_digest, value_digest
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import Architecture

CHECKPOINT_FILE = "checkpoint.json"
EXTRA_STATE = "_extra_state"
STEP_NAME = re.compile(r"step_(\d{8})")
# Layer numbers in the keys (one tensor a layer), optimizer state that loads at any data-parallel size.
CONTENT = {
    "non_homogeneous_layers": True,
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}


def step_folder(run: str | Path, step: int) -> Path:
    """Folder of the checkpoint of `step` in a run folder."""
    return Path(run) / "checkpoints" / f"step_{step:08d}"


def checkpoint_steps(run: str | Path) -> list[int]:
    """Steps of the checkpoints in a run folder, oldest first, complete by name (not yet verified)."""
    folder = Path(run) / "checkpoints"
    names = [STEP_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def verify(folder: Path) -> dict[str, Any]:
    """Content of checkpoint.json, after every file was found with its size and digest.

    Raises:
        DataError: a file is missing, truncated or altered.
    """
    if not (folder / CHECKPOINT_FILE).exists():
        raise DataError(f"{folder} has no {CHECKPOINT_FILE}: it was not written to its end")
    try:
        content = read_json(folder / CHECKPOINT_FILE)
    except InputError as error:
        raise DataError(str(error)) from None
    if content.get("fingerprint") != _fingerprint(content):
        raise DataError(f"{folder / CHECKPOINT_FILE} was altered: its content is not that of its fingerprint")
    for name, entry in content["files"].items():
        path = folder / name
        if not path.exists():
            raise DataError(f"{path} is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(f"{path} has {size} bytes instead of {entry['bytes']}")
        if file_digest(path) != entry["digest"]:
            raise DataError(f"{path} was altered: its digest is not that of {CHECKPOINT_FILE}")
    return content


def _fingerprint(content: dict[str, Any]) -> str:
    return value_digest({key: value for key, value in content.items() if key != "fingerprint"})


def newest(run: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Folder and content of the newest checkpoint that verifies; broken ones are skipped with a message."""
    for step in reversed(checkpoint_steps(run)):
        folder = step_folder(run, step)
        try:
            return folder, verify(folder)
        except DataError as error:
            print(f"skipping checkpoint {folder}: {error}", flush=True)
    return None


def find(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `path` names: a checkpoint folder, or a run folder (its newest one).

    Raises:
        InputError: there is none.
        DataError: the named one is broken.
    """
    folder = Path(path)
    if STEP_NAME.fullmatch(folder.name) and not folder.exists():
        steps = ", ".join(map(str, checkpoint_steps(folder.parent.parent))) or "none"
        raise InputError(f"{folder} does not exist; the run has checkpoints of steps: {steps}")
    if (folder / CHECKPOINT_FILE).exists() or STEP_NAME.fullmatch(folder.name):
        return folder, verify(folder)
    found = newest(folder)
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


def load_model(folder: Path, content: dict[str, Any], model: OneVisionModel) -> None:
    """Load the weights alone.

    Raises:
        InputError: checkpoint of another model size.
    """
    check_architecture(folder, content, model.architecture)
    _set_weights(model, dist_checkpointing.load({"model": _weights(model)}, str(folder))["model"])


def load_training(folder: Path, content: dict[str, Any], model: OneVisionModel, optimizer: Any, scheduler: Any) -> int:
    """Load weights, optimizer and scheduler; returns the step that was finished.

    Raises:
        InputError: checkpoint of another model size.
    """
    check_architecture(folder, content, model.architecture)
    state = _training_state(model, optimizer, scheduler, is_loading=True)
    state = dist_checkpointing.load(state, str(folder))
    _set_weights(model, state["model"])
    with torch.no_grad():
        optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return content["step"]


def _weights(model: OneVisionModel) -> dict[str, Any]:
    """The sharded tensors of the model. What backends keep beside them (`_extra_state`, which is empty but for FP8) is
    left out, so that a checkpoint of one backend loads in another."""
    state = model.sharded_state_dict(metadata=CONTENT)
    return {key: value for key, value in state.items() if not key.endswith(EXTRA_STATE)}


def _set_weights(model: OneVisionModel, state: dict[str, Any]) -> None:
    result = model.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not key.endswith(EXTRA_STATE)]
    if missing or result.unexpected_keys:
        raise InputError(f"weights do not fit the model: missing {missing}, unexpected {result.unexpected_keys}")


def _training_state(model: OneVisionModel, optimizer: Any, scheduler: Any, *, is_loading: bool) -> dict[str, Any]:
    weights = _weights(model)
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=CONTENT),
        "scheduler": scheduler.state_dict(),
    }


class Checkpointer:
    """Writes the checkpoints of one run, one at a time, in the background when `asynchronous`."""

    def __init__(self, run: Path, architecture: Architecture, *, keep: int, asynchronous: bool) -> None:
        self.run, self.architecture, self.keep, self.asynchronous = run, architecture, keep, asynchronous
        self._queue = AsyncCallsQueue()
        self._writing = False
        if dist.get_rank() == 0:
            for leftover in (run / "checkpoints").glob(".step_*"):
                shutil.rmtree(leftover, ignore_errors=True)
        # All ranks write into one folder, whose name no writer left over from a killed run can know.
        owner = [os.getpid()]
        dist.broadcast_object_list(owner, src=0)
        self._suffix = f"tmp{owner[0]}"

    def save(
        self, step: int, model: OneVisionModel, optimizer: Any = None, scheduler: Any = None, *, wait: bool = False
    ) -> None:
        """Start writing the state after `step`; with `wait`, or when not asynchronous, return when it stands.

        Raises:
            StorageError: the disk is full; earlier checkpoints are untouched.
        """
        self.wait()
        folder = step_folder(self.run, step)
        temporary = folder.with_name(f".{folder.name}.{self._suffix}")
        if optimizer is None:
            state: dict[str, Any] = {"model": _weights(model)}
        else:
            state = _training_state(model, optimizer, scheduler, is_loading=False)
        with _clean_failure(temporary):
            self._prepare(temporary, state)
            request = dist_checkpointing.save(
                state, str(temporary), async_sharded_save=True, content_metadata=dict(CONTENT)
            )
            request.add_finalize_fn(lambda: self._commit(temporary, step))
            if self.asynchronous and not wait:
                self._queue.schedule_async_request(request)
                self._writing = True
                self._temporary = temporary
            else:
                request.execute_sync()

    def poll(self) -> None:
        """Finish a background save that is done. Raises like `save`."""
        self._finish(blocking=False)

    def wait(self) -> None:
        """Wait for the background save. Raises like `save`."""
        self._finish(blocking=True)

    def close(self) -> None:
        """Wait, then end the writer."""
        self.wait()
        self._queue.close()

    def _prepare(self, temporary: Path, state: dict[str, Any]) -> None:
        """Make the folder, where there is room; all ranks raise when there is none."""
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                with storage_errors(temporary):
                    temporary.mkdir(parents=True)
                _check_space(temporary, state)
            except StorageError as error:
                problem = [str(error)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise StorageError(problem[0])

    def _commit(self, temporary: Path, step: int) -> None:
        if dist.get_rank() == 0:
            commit(temporary, self.run, step, self.architecture, self.keep)
        dist.barrier()

    def _finish(self, *, blocking: bool) -> None:
        if self._writing:
            with _clean_failure(self._temporary):
                self._queue.maybe_finalize_async_calls(blocking=blocking)
                self._writing = self._queue.get_num_unfinalized_calls() > 0


def commit(temporary: Path, run: Path, step: int, architecture: Architecture, keep: int) -> Path:
    """Make a written folder the checkpoint of `step`, and remove all but the newest `keep`; returns its folder."""
    folder = step_folder(run, step)
    files = {
        path.name: {"bytes": path.stat().st_size, "digest": file_digest(path)} for path in sorted(temporary.iterdir())
    }
    content = {"step": step, "architecture": asdict(architecture), "files": files}
    write_json(temporary / CHECKPOINT_FILE, content | {"fingerprint": _fingerprint(content)})
    _sync(temporary)
    if folder.exists():  # a broken one of the same step
        shutil.rmtree(folder)
    temporary.rename(folder)
    for old in checkpoint_steps(run)[:-keep]:
        shutil.rmtree(step_folder(run, old))
    return folder


@contextmanager
def _clean_failure(temporary: Path) -> Iterator[None]:
    """Remove the half-written folder of a failed save and say in one line what happened."""
    try:
        yield
    except OneVisionError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except (OSError, CheckpointingException, CheckpointException) as error:
        free = shutil.disk_usage(temporary.parent).free
        shutil.rmtree(temporary, ignore_errors=True)
        cause = _storage_cause(error)
        reason = cause.strerror if cause is not None else str(error).splitlines()[0]
        raise StorageError(
            f"checkpoint {temporary.parent} could not be saved: {reason} ({free / 1e6:,.0f} MB were free); "
            "earlier checkpoints are untouched: make room and run again"
        ) from error


def _storage_cause(error: BaseException | None) -> OSError | None:
    """The "disk full" behind an error, looked for in its causes and in what a failed writer sent."""
    seen: list[Any] = [error]
    while seen:
        current = seen.pop()
        if isinstance(current, OSError) and current.errno in FULL:
            return current
        if isinstance(current, BaseException):
            seen += [current.__cause__, current.__context__, *current.args]
            seen += [failure[0] for failure in getattr(current, "failures", {}).values()]
    return None


def _check_space(folder: Path, state: dict[str, Any]) -> None:
    needed = 0

    def add(value: Any) -> None:
        nonlocal needed
        if isinstance(value, dict):
            for entry in value.values():
                add(entry)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                add(entry)
        elif isinstance(data := getattr(value, "data", None), torch.Tensor):
            needed += data.nbytes

    add(state)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"checkpoint {folder.parent} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; earlier "
            "checkpoints are untouched: make room and run again"
        )


def _sync(folder: Path) -> None:
    """Flush the files of a folder and the folder itself to the disk."""
    with storage_errors(folder):
        for path in [*folder.iterdir(), folder]:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
