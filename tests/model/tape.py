"""A tape stands for a CUDA graph on a CPU: it records the operators of a call with their very tensors, and starts them
again into the same memory. As in a CUDA graph no Python runs again, nothing lies elsewhere than before, and nothing may
wait for a value; kernels that Triton interprets are recorded too. What it does not have is a graph's own memory, where
what is no longer needed makes room for the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from onevision.model.graphs import Compute

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Tape(TorchDispatchMode):
    """The operators of a call, to be started again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITS, f"{func} waits for the device: a graph cannot hold it"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def start(self) -> None:
        for func, args, kwargs, result in self.calls:
            for place, value in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def tape_record(compute: Compute) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """As `onevision.model.graphs.Record`; it computes what it records."""
    tape = Tape()
    with tape, recorded_kernels(tape):
        results = compute()
    return results, tape.start


@contextmanager
def recorded_kernels(tape: Tape) -> Iterator[None]:
    """Inside, kernels that Triton interprets are put on the tape as one call each, not as operators of which the
    interpreter is made."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def recorded(executor: Any, *args: Any, **kwargs: Any) -> None:
        tape.calls.append((launch, (executor, *args), kwargs, None))
        with _disable_current_modes():
            launch(executor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", recorded)
        yield
