"""The scales of delayed FP8: each module's past maxima, which decide how the next step is rounded.

Every data-parallel rank has its own (model/configs.py), so a checkpoint holds one object a rank, with the layers by
their numbers in the whole model. Other scalings, and BF16, keep nothing from step to step. Weights load in any
precision; scales only where they are used:

    checkpoint        model             what happens
    delayed FP8       delayed FP8       scales go on: bit for bit with the same ranks, else a rank takes
                                        another's, of its own pipeline stage
    delayed FP8       anything else     scales are not used
    anything else     delayed FP8       scales start anew, at 1; also those of a rank whose stage had other layers

All but the first, with the same ranks, is told in a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
from torch import Tensor

from onevision.training.agreement import all_ranks

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
    """Give the modules the scales of a checkpoint, in the place of those they have. All ranks call it together; returns
    the line to be told, if scales do not go on as they were on all of them."""
    saved = _saved_ranks(folder)
    if not delayed:
        return f"{folder}: its FP8 scales are not used, this run has none" if saved else None
    modules = _modules(parts)
    if not saved:
        _start_anew(modules)
        return f"{folder} has no FP8 scales: they start anew"
    part = ShardedObject(KEY, None, (saved,), (_source(rank, ranks, saved),))
    # Several ranks may read one part, which Megatron would take for a mistake.
    loaded: dict[str, Any] = dist_checkpointing.load({KEY: part}, str(folder), validate_access_integrity=False)
    fits = set(loaded[KEY]) == set(modules)
    if fits:
        for name, state in loaded[KEY].items():
            modules[name].set_extra_state(state)
    else:
        _start_anew(modules)
    others = all_ranks(fits).count(False)
    if others:
        return f"{folder}: its FP8 scales are of other layers for {others} of {ranks} ranks: there they start anew"
    if saved != ranks:
        return f"{folder}: FP8 scales of {saved} ranks go on with {ranks}: a rank takes those of one with its layers"
    return None


def _source(rank: int, ranks: int, saved: int) -> int:
    """Which of the ranks that saved a checkpoint to take scales of: one of the same pipeline stage, if there were as
    many stages. Ranks of a stage stand one behind the other (Megatron's order: pipeline last)."""
    stage = parallel_state.get_pipeline_model_parallel_rank()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if saved % stages:
        return rank % saved
    return stage * (saved // stages) + rank % (ranks // stages) % (saved // stages)


def _start_anew(modules: dict[str, Any]) -> None:
    for module in modules.values():
        module.reset_fp8_meta_tensors()  # nothing before the first step, else as in the first step


def _modules(parts: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """Transformer Engine's layers with weights, by their names in the whole model. Its attention, which is not in FP8,
    has nothing to keep."""
    found = {}
    for part in parts:
        named = dict(part.named_modules())
        for name, module in named.items():
            if hasattr(module, "fp8_meta") and any(True for _ in module.parameters(recurse=False)):
                found[_whole_name(name, named)] = module
    return found


def _whole_name(name: str, named: dict[str, Any]) -> str:
    """The name with the number that the layer has in the whole model, which has more of them with a pipeline."""
    match = re.match(r"(.*\blayers\.)\d+(?=\.)", name)
    return name if match is None else f"{match[1]}{named[match[0]].layer_number - 1}{name[match.end() :]}"


def _saved_ranks(folder: Path) -> int:
    parts = load_sharded_metadata(str(folder)).values()
    return next((part.global_shape[0] for part in parts if isinstance(part, ShardedObject) and part.key == KEY), 0)
