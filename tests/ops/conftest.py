"""The libraries under test, built once a session, and the four ways to run an op."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from onevision.ops.build import Library
from onevision.ops.library import here, load


@dataclass(frozen=True)
class Place:
    """Ops, and the device that they are called on."""

    namespace: str
    device: str

    @property
    def ops(self) -> Any:
        return getattr(torch.ops, self.namespace)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's libraries are built."""
    return tmp_path_factory.mktemp("ops")


@pytest.fixture(scope="session")
def libraries(folder: Path) -> ctypes.CDLL:
    """The library of this machine and the emulated one, loaded; the latter's C functions."""
    for compiler in ("g++", "nvcc") if here().architectures else ("g++",):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    for library in (here(), Library(emulated=True)):
        library.build(folder)
        load(library, folder)
    return ctypes.CDLL(str(Library(emulated=True).path(folder)))


@pytest.fixture(params=["twin", "kernel", "kernel, threads reversed", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, libraries: ctypes.CDLL) -> Iterator[Place]:
    """The twin; the kernel's source on the CPU, its threads in one order and in the other; the GPU."""
    libraries.ov_emulator_descending(int(request.param.endswith("reversed")))
    yield Place(
        "onevision_emulated" if request.param.startswith("kernel") else "onevision",
        "cuda" if request.param == "cuda" else "cpu",
    )
    libraries.ov_emulator_descending(0)
