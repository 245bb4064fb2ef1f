"""Compile the sources of `cuda/` into libraries that register ops with PyTorch.

A library's name has a digest of all that it is made of, so an old one is never loaded by mistake.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from onevision.errors import InputError
from onevision.files import write_text

SOURCES = Path(__file__).resolve().parents[3] / "cuda"
FOLDER = SOURCES / "build"
CHECKED = ("80", "90")  # A800 and H100
TARGET = "0x020a000000000000"  # of the stable ABI: PyTorch 2.10 and all later ones can load the library
# Sums are written as they are to be computed: the twin and the kernel must round alike.
GXX = ("g++", "-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
NVCC = ("nvcc", "-std=c++17", "-O3", "-Xcompiler=-fPIC", "-Werror=all-warnings", "-fmad=false", "-Xptxas=-v", "-t2")
# What is undefined in C++ ends the process.
EMULATE = (
    *GXX, "-DONEVISION_EMULATED", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error",
    "-fno-strict-aliasing",  # nvcc's rule: kernels move values of all types as words
    "-x", "c++",
)
TORCH = ("torch_cpu", "torch_cuda")


@dataclass(frozen=True)
class Library:
    """One library: `architectures` are the GPUs it is for ("80", "90"); with none, the CPU is all it serves.

    An `emulated` one has no twins: on the CPU it runs the kernels' own source, thread by thread.
    """

    architectures: tuple[str, ...] = ()
    emulated: bool = False

    @property
    def namespace(self) -> str:
        """Of torch.ops, in which its ops are found."""
        return "onevision_emulated" if self.emulated else "onevision"

    def path(self, folder: Path = FOLDER) -> Path:
        """Where it stands once it is built."""
        digest = hashlib.sha256(repr((GXX, NVCC, EMULATE, TARGET, torch.__version__)).encode())
        for source in sorted(SOURCES.rglob("*")):
            if source.suffix in (".h", ".cuh", ".cpp", ".cu"):
                digest.update(source.read_bytes())
        kind = "-".join(["sm", *self.architectures]) if self.architectures else "cpu"
        return folder / f"{self.namespace}-{kind}-{digest.hexdigest()[:12]}.so"

    def build(self, folder: Path = FOLDER) -> Path:
        """Compile it where it does not stand already; its path. Beside it lies a .log of what the compilers said.

        Raises:
            InputError: a compiler is missing, or refuses a source.
        """
        path = self.path(folder)
        if path.exists():
            return path
        _needs("g++", "apt-get install g++")
        if self.architectures:
            _needs("nvcc", "install CUDA 13.0 and put its bin folder on PATH")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            made = Path(name) / path.name
            objects, said = self._compile(Path(name))
            torch_folder = Path(torch.__file__).parent / "lib"
            present = [library for library in TORCH if (torch_folder / f"lib{library}.so").exists()]
            # Not only as needed: what is needed of CUDA's part is a weak symbol, for which no linker keeps a library.
            linked = ["-Xlinker", "--no-as-needed", f"-L{torch_folder}", *(f"-l{library}" for library in present)]
            run(["nvcc" if self.architectures else "g++", "-shared", *map(str, objects), *linked, "-o", str(made)])
            write_text(path.with_suffix(".log"), said)
            made.replace(path)
        return path

    def _compile(self, scratch: Path) -> tuple[list[Path], str]:
        include = Path(torch.__file__).parent / "include"
        defines = [f"-DTORCH_TARGET_VERSION={TARGET}", f"-DONEVISION_NAMESPACE={self.namespace}"]
        defines += ["-DONEVISION_EMULATED"] * self.emulated + ["-DONEVISION_CUDA"] * bool(self.architectures)
        binding = (SOURCES / "binding.cpp", [*GXX, *defines, "-isystem", str(include)])
        kernels = sorted((SOURCES / "kernels").glob("*.cu"))
        if self.emulated:
            steps = [binding, (SOURCES / "emulator.cpp", GXX), *((kernel, EMULATE) for kernel in kernels)]
        else:
            steps = [binding, *((twin, GXX) for twin in sorted((SOURCES / "twins").glob("*.cpp")))]
        if self.architectures:
            chosen = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.architectures]
            steps += [(kernel, [*NVCC, *chosen]) for kernel in kernels]
        objects = [scratch / f"{number}.o" for number in range(len(steps))]
        commands = [
            [*command, f"-I{SOURCES}", "-c", str(source), "-o", str(made)]
            for (source, command), made in zip(steps, objects, strict=True)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return objects, "".join(pool.map(run, commands))


def run(command: Sequence[str]) -> str:
    """Run a compiler; what it printed.

    Raises:
        InputError: it fails; the line names its first complaint.
    """
    ended = subprocess.run(command, capture_output=True, text=True)
    said = ended.stderr + ended.stdout
    if ended.returncode:
        lines = said.splitlines() or [f"exit code {ended.returncode}"]
        complaint = next((line for line in lines if "error" in line), lines[0])
        raise InputError(f"{command[0]} failed: {complaint.strip()}")
    return said


def _needs(program: str, remedy: str) -> None:
    if shutil.which(program) is None:
        raise InputError(f"{program} is not on PATH, and the ops of cuda/ are compiled with it: {remedy}")
