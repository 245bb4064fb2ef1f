"""Importing Megatron-core without PyTorch's compiler, where nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def import_megatron() -> None:
    """Import Megatron-core, before anything else does; later it changes nothing.

    Megatron passes its fused functions to `torch.compile` while it is imported, and the first such call loads the whole
    compiler: half of the 8 s of a core that a rank needs to start, and 70 of its 380 MB. Without a GPU none of these
    functions is used (`configs.py` turns their fusions off), so they stay as they are written.

    PyTorch's optimizers load it too, in order to tell it which of their methods it is to leave alone.
    """
    compiler = torch.compile
    if not torch.cuda.is_available():
        torch.compile = _as_written
        for method in vars(torch.optim.Optimizer).values():
            if hasattr(method, "__wrapped__"):
                method.__wrapped__.__dynamo_disable = method.__wrapped__  # what `torch._compile` looks for first
    try:
        import megatron.core  # noqa: F401
    finally:
        torch.compile = compiler


def _as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
