"""The state of training as one rank holds it: weights of its model chunks, its shard of the optimizer, the schedule.

No rank needs another one for it, and it only fits the layout that it was taken in (`onevision.training.local_copy`).
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from onevision.errors import InputError
from onevision.recipe import Recipe

EXTRA_STATE = "_extra_state"  # of Transformer Engine: pickled, and empty but for delayed FP8, which recipes refuse here


def layout(recipe: Recipe) -> dict[str, Any]:
    """What decides how the state is spread over ranks and laid out in them."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "megatron-core")}
    values = {
        "rank": dist.get_rank(),
        "ranks": dist.get_world_size(),
        "parallel": asdict(recipe.parallel),
        "performance": asdict(recipe.performance),
        "backend": recipe.model.backend,
        **versions,
    }
    return dict(json.loads(json.dumps(values)))  # as it is read again


def take(parts: Sequence[torch.nn.Module], optimizer: Any, scheduler: Any, beside: dict[str, Any]) -> dict[str, Any]:
    """The state, as new tensors on the CPU. `parts` are those of the model that this rank has (more than one with a
    virtual pipeline), `beside` are plain values that are to be kept with it."""
    return {
        "model": [{name: _copy(tensor) for name, tensor in _weights(part).items()} for part in parts],
        "optimizer": [
            {
                "groups": [
                    {key: value for key, value in group.items() if key != "params"} for group in inner.param_groups
                ],
                "params": [{name: _copy(tensor) for name, tensor in held.items()} for held in _held(inner)],
            }
            for inner in _inner(optimizer)
        ],
        "scheduler": scheduler.state_dict(),
        "beside": beside,
    }


def restore(path: Path, parts: Sequence[torch.nn.Module], optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Put the state of a file, written of what `take` gave, in the place of the present one; returns `beside`.

    Nothing in the file is executed.

    Raises:
        InputError: it is of another model or optimizer.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for part, weights in zip(parts, saved["model"], strict=True):
                _fill(_weights(part), weights)
            for inner, state in zip(_inner(optimizer), saved["optimizer"], strict=True):
                for held, tensors in zip(_held(inner), state["params"], strict=True):
                    _fill(held, tensors)
                for group, values in zip(inner.param_groups, state["groups"], strict=True):
                    group.update(values)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} does not fit this model: {reason}; remove it, the newest checkpoint is used then"
        ) from None
    scheduler.num_steps = 0  # loading adds to it
    scheduler.load_state_dict(saved["scheduler"])
    return dict(saved["beside"])


def _weights(part: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by name, as they lie in the model."""
    state = part.state_dict(keep_vars=True)
    return {
        name: value for name, value in state.items() if isinstance(value, Tensor) and not name.endswith(EXTRA_STATE)
    }


def _inner(optimizer: Any) -> list[Any]:
    """PyTorch's or Transformer Engine's optimizers behind Megatron's; a rank whose part is frozen has none."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts if not getattr(part, "is_stub_optimizer", False)]


def _held(inner: Any) -> Iterator[dict[str, Tensor]]:
    """For each parameter of an optimizer its FP32 master (or itself) and what is remembered of its gradients."""
    for group in inner.param_groups:
        for parameter in group["params"]:
            yield {"parameter": parameter, **inner.state[parameter]}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _fill(present: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Copy values into tensors of the same names, shapes and types."""
    if set(present) != set(saved):
        raise KeyError(f"it has {sorted(set(saved) ^ set(present))[:3]} too much or too little")
    for name, tensor in present.items():
        other = saved[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise ValueError(
                f"{name} is {list(other.shape)} {other.dtype} instead of {list(tensor.shape)} {tensor.dtype}"
            )
        tensor.copy_(other)
