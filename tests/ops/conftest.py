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

from onevision.ops.build import FOLDER, Library
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
def native(folder: Path) -> None:
    """The library of this machine, loaded: as it stands in cuda/build, which its name proves, or built anew."""
    for compiler in ("g++", "nvcc") if here().architectures else ("g++",):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    standing = here().path().exists()
    if not standing:
        here().build(folder)
    load(here(), FOLDER if standing else folder)


@pytest.fixture(scope="session")
def libraries(native: None, folder: Path) -> ctypes.CDLL:
    """The library of this machine and the emulated one, loaded; the latter's C functions."""
    emulated = Library(emulated=True)
    emulated.build(folder)
    load(emulated, folder)
    return ctypes.CDLL(str(emulated.path(folder)))


@pytest.fixture(params=["twin", "kernel", "kernel, threads reversed", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, native: None) -> Iterator[Place]:
    """The twin; the kernel's source on the CPU, its threads in one order and in the other; the GPU."""
    emulated = request.param.startswith("kernel")
    if not emulated:
        yield Place("onevision", "cuda" if request.param == "cuda" else "cpu")
        return
    libraries = request.getfixturevalue("libraries")
    libraries.ov_emulator_descending(int(request.param.endswith("reversed")))
    yield Place("onevision_emulated", "cpu")
    libraries.ov_emulator_descending(0)
