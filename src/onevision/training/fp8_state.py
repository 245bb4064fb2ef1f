"""The scales of delayed FP8: each module's past maxima, which decide how the next step is rounded.

Every data-parallel rank has its own (model/configs.py), so a checkpoint holds one object a rank. Other scalings, and
BF16, keep nothing from step to step. Weights load in any precision; scales only where they are used:

    checkpoint        model             what happens
    delayed FP8       delayed FP8       scales go on: bit for bit with the same ranks, else a rank takes another's
    delayed FP8       anything else     scales are not used
    anything else     delayed FP8       scales start anew, at 1; also where a rank had other layers

The last three are told in a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
from torch import Tensor

KEY = "fp8_scales"


def scales(parts: Sequence[torch.nn.Module]) -> dict[str, Tensor]:
    """What Transformer Engine's modules keep of past steps, by module: uint8 on the CPU. Empty without delayed FP8."""
    found = {}
    for name, module in _modules(parts).items():
        recipe = module.fp8_meta.get("recipe")
        if recipe is not None and recipe.delayed() and (state := module.get_extra_state()).numel():
            found[name] = state
    return found


def sharded_scales(parts: Sequence[torch.nn.Module], rank: int, ranks: int) -> dict[str, ShardedObject]:
    """This rank's part of a checkpoint; empty without delayed FP8."""
    state = scales(parts)
    return {KEY: ShardedObject(KEY, state, (ranks,), (rank,))} if state else {}


def load_scales(folder: Path, parts: Sequence[torch.nn.Module], delayed: bool, rank: int, ranks: int) -> str | None:
    """Give the modules the scales of a checkpoint. Returns the line to be told, if they do not go on as they were."""
    saved = _saved_ranks(folder)
    if not delayed:
        return f"{folder}: its FP8 scales are not used, this run has none" if saved else None
    if not saved:
        return f"{folder} has no FP8 scales: they start anew"
    part = ShardedObject(KEY, None, (saved,), (rank % saved,))
    # Several ranks may read one part, which Megatron would take for a mistake.
    loaded: dict[str, Any] = dist_checkpointing.load({KEY: part}, str(folder), validate_access_integrity=False)
    modules = _modules(parts)
    if set(loaded[KEY]) != set(modules):
        return f"{folder}: its FP8 scales are of ranks that had other layers: they start anew"
    for name, state in loaded[KEY].items():
        modules[name].set_extra_state(state)
    if saved != ranks:
        return f"{folder}: FP8 scales of {saved} ranks go on with {ranks}: a rank takes those of rank modulo {saved}"
    return None


def _modules(parts: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """Transformer Engine's layers with weights. Its attention, which is not in FP8, has nothing to keep."""
    return {
        name if len(parts) == 1 else f"{number}.{name}": module
        for number, part in enumerate(parts)
        for name, module in part.named_modules()
        if hasattr(module, "fp8_meta") and any(True for _ in module.parameters(recurse=False))
    }


def _saved_ranks(folder: Path) -> int:
    parts = load_sharded_metadata(str(folder)).values()
    return next((part.global_shape[0] for part in parts if isinstance(part, ShardedObject) and part.key == KEY), 0)
