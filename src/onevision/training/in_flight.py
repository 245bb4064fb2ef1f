"""How many micro-batches wait for their backward pass on a stage of a pipeline, in Megatron's schedules. No torch."""

from __future__ import annotations

import math
from functools import cache

_GROUPS = 4  # of micro-batches, one a stage; what waits repeats from group to group


def most_in_flight(stage: int, pipeline: int, virtual_pipeline: int, micro_batches: int) -> list[tuple[int, ...]]:
    """Micro-batches whose activations each part of `stage` keeps, right after a forward pass: what can be at a time.

    1F1B (virtual_pipeline = 1): the backward passes of stage s of p begin when p - s micro-batches are there, and each
    forward pass is followed by one backward pass. Interleaved: each p micro-batches pass the first part, then the
    second and so on, and backward from the last part on; 2(p - s - 1) + (v - 1)p forward passes come before the first
    pair of forward and backward. `micro_batches` is then a multiple of `pipeline`.
    """
    if virtual_pipeline == 1:
        return [(min(pipeline - stage, micro_batches),)]
    return _interleaved(stage, pipeline, virtual_pipeline, min(math.ceil(micro_batches / pipeline), _GROUPS))


@cache
def _interleaved(stage: int, pipeline: int, parts: int, groups: int) -> list[tuple[int, ...]]:
    order = [part for _ in range(groups) for part in range(parts) for _ in range(pipeline)]
    warm_up = min(2 * (pipeline - stage - 1) + (parts - 1) * pipeline, len(order))
    waiting, found = [0] * parts, set()
    for number, part in enumerate(order):
        waiting[part] += 1
        found.add(tuple(waiting))
        if number >= warm_up:
            waiting[parts - 1 - order[number - warm_up]] -= 1
    return sorted(found)
