"""What all ranks must decide alike, whatever each of them sees: one that goes another way leaves the others waiting."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def of_first_rank(value: T) -> T:
    """Rank 0's (picklable) value, on all ranks. Caches of a shared file system may show them different files."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def highest(number: int, device: torch.device) -> int:
    """The highest of the ranks' numbers, on all ranks. `device` is the one of the process group."""
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)
