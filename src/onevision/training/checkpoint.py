"""Checkpoints: Megatron's dist_checkpointing, written beside and renamed (`training/checkpoint_files.py`).

Nothing in a training step draws random numbers and the loader is a pure function of the step, so model, optimizer,
scheduler, the step number, the scales of delayed FP8 and what the guard remembers are the whole state.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import is_main_replica
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint import CheckpointException

from onevision.errors import InputError, OneVisionError, StorageError
from onevision.files import full_disk, storage_errors
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import Architecture
from onevision.training.agreement import agreed, all_ranks, of_first_rank
from onevision.training.checkpoint_files import (
    check_architecture,
    commit,
    nothing_awaited,
    remove_leftovers,
    step_folder,
)
from onevision.training.fp8_state import KEY, load_scales, sharded_scales

EXTRA_STATE = "_extra_state"
# Layer numbers in the keys (one tensor a layer), optimizer state that loads at any data-parallel size.
CONTENT = {
    "non_homogeneous_layers": True,
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,  # gathered in host memory of the first rank, not on the GPUs
}


def load_model(folder: Path, content: dict[str, Any], *parts: OneVisionModel) -> None:
    """Load the weights alone, of what this rank has of the model.

    Raises:
        InputError: checkpoint of another model size.
    """
    check_architecture(folder, content, parts[0].architecture)
    _set_weights(parts, dist_checkpointing.load(_weights(parts), str(folder)))


def load_training(
    folder: Path, content: dict[str, Any], parts: Sequence[OneVisionModel], optimizer: Any, scheduler: Any
) -> tuple[int, dict[str, Any] | None]:
    """Load weights, optimizer and scheduler, over what they are now; returns the step that was finished, and the
    guard's state.

    Raises:
        InputError: checkpoint of another model size.
    """
    check_architecture(folder, content, parts[0].architecture)
    state = _training_state(parts, optimizer, scheduler, is_loading=True)
    state.pop(KEY, None)
    state = dist_checkpointing.load(state, str(folder))
    _set_weights(parts, state)
    with torch.no_grad():
        optimizer.load_state_dict(state["optimizer"])
    scheduler.num_steps = 0  # loading adds to it
    scheduler.load_state_dict(state["scheduler"])
    config = parts[0].config
    delayed = bool(config.fp8) and config.fp8_recipe == "delayed"
    told = load_scales(folder, parts, delayed, dist.get_rank(), dist.get_world_size())
    if told and dist.get_rank() == 0:
        print(told, flush=True)
    return content["step"], state.get("guard")


def _weights(parts: Sequence[OneVisionModel]) -> dict[str, Any]:
    """The sharded tensors of the model: `model`, or with a virtual pipeline `model0`, `model1` of the rank's parts; in
    the checkpoint they have the names of the whole model. What backends keep beside them (`_extra_state`) is left out,
    so that a checkpoint of one backend loads in another; the scales of FP8 are a part of their own
    (training/fp8_state.py)."""
    return {name: _own_weights(part) for name, part in _named(parts)}


def _own_weights(part: OneVisionModel) -> dict[str, Any]:
    state = part.sharded_state_dict(metadata=CONTENT)
    state = {key: value for key, value in state.items() if not key.endswith(EXTRA_STATE)}
    if part.part.split_vision:  # modules that are alone do not know that other ranks have the same
        rank = parallel_state.get_tensor_model_parallel_rank()
        for key, value in state.items():
            if key.startswith(("vision.", "adapter.")):
                pipeline, _, data = value.replica_id
                value.replica_id = (pipeline, rank, data)
    return state


def _named(parts: Sequence[OneVisionModel]) -> list[tuple[str, OneVisionModel]]:
    # The names are those by which Megatron's optimizer asks for them.
    return [("model", parts[0])] if len(parts) == 1 else [(f"model{n}", part) for n, part in enumerate(parts)]


def _set_weights(parts: Sequence[OneVisionModel], state: dict[str, Any]) -> None:
    for name, part in _named(parts):
        result = part.load_state_dict(state[name], strict=False)
        missing = [key for key in result.missing_keys if not key.endswith(EXTRA_STATE)]
        if missing or result.unexpected_keys:
            raise InputError(f"weights do not fit the model: missing {missing}, unexpected {result.unexpected_keys}")


def _training_state(
    parts: Sequence[OneVisionModel], optimizer: Any, scheduler: Any, *, is_loading: bool
) -> dict[str, Any]:
    weights = _weights(parts)
    of_optimizer = weights["model"] if len(parts) == 1 else weights
    return {
        **weights,
        "optimizer": optimizer.sharded_state_dict(of_optimizer, is_loading=is_loading, metadata=CONTENT),
        "scheduler": scheduler.state_dict(),
        **sharded_scales(parts, dist.get_rank(), dist.get_world_size()),
    }


class Checkpointer:
    """Writes the checkpoints of one run, one at a time, in the background when `asynchronous`."""

    def __init__(
        self,
        run: Path,
        architecture: Architecture,
        *,
        keep: int,
        asynchronous: bool,
        awaited: Callable[[int], bool] = nothing_awaited,
        on_commit: Callable[[int], None] | None = None,
    ) -> None:
        """`awaited(step)` is that of `prune`; the first rank calls `on_commit(step)` when a checkpoint stands."""
        self.run, self.architecture, self.keep, self.asynchronous = run, architecture, keep, asynchronous
        self._awaited, self._on_commit = awaited, on_commit
        _tell_full_disks()
        self._queue = AsyncCallsQueue()
        self._writing = False
        if dist.get_rank() == 0:
            remove_leftovers(run)
        # All ranks write into one folder, whose name no writer left over from a killed run can know.
        owner = [os.getpid()]
        dist.broadcast_object_list(owner, src=0)
        self._suffix = f"tmp{owner[0]}"

    def save(
        self,
        step: int,
        parts: Sequence[OneVisionModel],
        optimizer: Any = None,
        scheduler: Any = None,
        guard: dict[str, Any] | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Start writing the state after `step`, with that of the guard; with `wait`, or when not asynchronous, return
        when it stands.

        Raises:
            StorageError: the disk is full; earlier checkpoints are untouched.
        """
        self.wait()
        folder = step_folder(self.run, step)
        temporary = folder.with_name(f".{folder.name}.{self._suffix}")
        if optimizer is None:
            state: dict[str, Any] = _weights(parts)
        else:
            state = _training_state(parts, optimizer, scheduler, is_loading=False) | {"guard": guard}
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
        needed = sum(all_ranks(_own_bytes(state)))

        def make() -> None:
            with storage_errors(temporary):
                temporary.mkdir(parents=True)
            _check_space(temporary, needed)

        agreed(make if dist.get_rank() == 0 else lambda: None)

    def _commit(self, temporary: Path, step: int) -> None:
        if dist.get_rank() == 0:
            commit(temporary, self.run, step, self.architecture, self.keep, awaited=self._awaited)
            if self._on_commit is not None:
                self._on_commit(step)
        dist.barrier()

    def _finish(self, *, blocking: bool) -> None:
        if self._writing:
            with _clean_failure(self._temporary):
                self._queue.maybe_finalize_async_calls(blocking=blocking)
                self._writing = self._queue.get_num_unfinalized_calls() > 0


def _tell_full_disks() -> None:
    """Let a writer's process send the system's error. It gets another one from PyTorch, which misses the bytes that
    could not be written and does not say why."""
    write = filesystem_async._write_item
    if getattr(write, "tells", False):
        return

    @wraps(write)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return write(*args, **kwargs)
        except RuntimeError as error:
            raise full_disk(error) or error from None

    told.tells = True  # type: ignore[attr-defined]
    filesystem_async._write_item = told


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
        cause = full_disk(error)
        reason = cause.strerror if cause is not None else str(error).splitlines()[0]
        if isinstance(error, CheckpointException):  # raised on all ranks, and only the first one is told why
            reason = of_first_rank(reason)
        raise StorageError(
            f"checkpoint {temporary.parent} could not be saved: {reason} ({free / 1e6:,.0f} MB were free); "
            "earlier checkpoints are untouched: make room and run again"
        ) from error


def _own_bytes(state: Any) -> int:
    """Bytes of the tensors that this rank writes: of what several ranks have, one writes."""
    if isinstance(state, dict):
        return sum(map(_own_bytes, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(_own_bytes, state))
    data = getattr(state, "data", None)
    replica = getattr(state, "replica_id", dist.get_rank())  # what is not sharded is written by the first rank
    return data.nbytes if isinstance(data, torch.Tensor) and is_main_replica(replica) else 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"checkpoint {folder.parent} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; earlier "
            "checkpoints are untouched: make room and run again"
        )
