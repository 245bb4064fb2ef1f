"""What all ranks must decide alike, whatever each of them sees: one that goes another way leaves the others waiting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from onevision.errors import OneVisionError

T = TypeVar("T")


def of_first_rank(value: T) -> T:
    """Rank 0's (picklable) value, on all ranks. Caches of a shared file system may show them different files."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def all_ranks(value: T) -> list[T]:
    """The (picklable) values of all ranks in their order, on all ranks."""
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def agreed(call: Callable[[], T]) -> T:
    """What rank 0 gets of the call, on all ranks; the others' values do not count.

    Raises:
        OneVisionError: rank 0's, on all ranks: none is left waiting for one that has ended.
    """
    value, raised = of_first_rank(_tried(call))
    if raised is not None:
        raise raised
    return value


def everyone(call: Callable[[], T]) -> list[T]:
    """What the ranks get of the call, in their order, on all ranks.

    Raises:
        OneVisionError: of the first rank that failed, on all ranks: none is left waiting for one that has ended.
    """
    results = all_ranks(_tried(call))
    for _, raised in results:
        if raised is not None:
            raise raised
    return [value for value, _ in results]


def _tried(call: Callable[[], T]) -> tuple[Any, OneVisionError | None]:
    try:
        return call(), None
    except OneVisionError as error:
        return None, error


def highest(number: int, device: torch.device) -> int:
    """The highest of the ranks' numbers, on all ranks. `device` is the one of the process group."""
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)


def highest_values(values: Sequence[float], device: torch.device) -> list[float]:
    """For each value the highest of the ranks', on all ranks; NaN stands above infinity, which stands above numbers.
    A rank that does not know a value, which is never below 0, gives 0."""
    kinds = [2 if math.isnan(value) else 1 if math.isinf(value) else 0 for value in values]
    numbers = [value if math.isfinite(value) else 0.0 for value in values]
    shared = torch.tensor([kinds, numbers], dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    special = {0: None, 1: math.inf, 2: math.nan}
    return [number if (known := special[int(kind)]) is None else known for kind, number in shared.T.tolist()]
