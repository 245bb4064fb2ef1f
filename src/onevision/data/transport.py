"""A batch's way from a worker to the training process: small arrays through a pipe, patches by reference.

The patches lie in an anonymous memory file. A pipe would copy tens of megabytes in both processes, and the
shared memory that torch uses, /dev/shm, is as small as 64 MB in many containers.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from onevision.data.batch import PackedBatch


class Parcel:
    """Sent to another process by `multiprocessing`, it arrives there as the `PackedBatch`, once."""

    def __init__(self, batch: PackedBatch) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Callable[..., PackedBatch], tuple[Any, ...]]:
        values = vars(self.batch).items()
        arrays = {name: value.numpy() for name, value in values if isinstance(value, torch.Tensor)}
        others = {name: value for name, value in values if name not in arrays}
        patches = arrays.pop("patches")
        with os.fdopen(os.memfd_create("patches"), "wb") as file:
            file.write(patches)
            return _arrive, (others, arrays, DupFd(file.fileno()), patches.shape)


def _arrive(
    others: dict[str, Any], arrays: dict[str, np.ndarray], handle: Any, shape: tuple[int, int]
) -> PackedBatch:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with os.fdopen(handle.detach(), "r+b") as file:
        if shape[0]:
            patches = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.float32).view(shape)
        else:  # an empty file cannot be mapped
            patches = torch.zeros(shape)
    return PackedBatch(**others, **tensors, patches=patches)
