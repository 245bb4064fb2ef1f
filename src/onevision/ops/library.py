"""Load a library of ops and tell PyTorch the rest: shapes for tracing, gradients."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from onevision.errors import InputError
from onevision.ops.build import FOLDER, Library

_OPS = ("assemble", "patches", "rotary", "scatter")  # the modules of this package that register an op each


def here() -> Library:
    """The library for this machine: its GPUs, or where there is none the CPU alone."""
    found = {torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())}
    return Library(tuple(f"{major}{minor}" for major, minor in sorted(found)))


def load(library: Library | None = None, folder: Path = FOLDER) -> None:
    """Make the ops of a library, by default the one for this machine, known as torch.ops.<namespace>.*

    Safe to call again.

    Raises:
        InputError: it was not built since a source changed.
    """
    library = library or here()
    if hasattr(getattr(torch.ops, library.namespace), "rotary"):
        return
    path = library.path(folder)
    if not path.exists():
        raise InputError(f"{path} is not there: make cuda")
    torch.ops.load_library(path)
    for name in _OPS:
        importlib.import_module(f"onevision.ops.{name}").register(library.namespace)
