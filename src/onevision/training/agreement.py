"""What all ranks must decide alike, whatever each of them sees: one that goes another way leaves the others waiting."""

from __future__ import annotations

from collections.abc import Callable
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
    try:
        mine: tuple[Any, OneVisionError | None] = (call(), None)
    except OneVisionError as error:
        mine = (None, error)
    value, raised = of_first_rank(mine)
    if raised is not None:
        raise raised
    return value


def highest(number: int, device: torch.device) -> int:
    """The highest of the ranks' numbers, on all ranks. `device` is the one of the process group."""
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)
