"""What can be proved of the kernels without a GPU: that they compile for it, and that their source is right."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from onevision.errors import DataError
from onevision.ops.assembler import Kernel, read_kernels
from onevision.ops.build import CHECKED, FOLDER, Library
from onevision.ops.extremes import extremes
from onevision.ops.library import here, load

NEAR = {torch.float32: 1e-5, torch.bfloat16: 2**-7}  # between kernel and twin, of the largest value; others: equal


@dataclass(frozen=True)
class Comparison:
    """A kernel's source and its twin on one case."""

    op: str
    case: str
    difference: float  # the largest, as a share of the largest value


def compile_all(folder: Path = FOLDER) -> list[Kernel]:
    """Compile every kernel for every GPU of the suite, warnings being errors, and link them.

    Raises:
        InputError: a compiler is missing, or refuses a source.
    """
    return read_kernels(Library(CHECKED).build(folder).with_suffix(".log").read_text())


def compare_all(folder: Path = FOLDER) -> Iterator[Comparison]:
    """Run every kernel's source on the CPU, on ragged extremes, and compare it with its twin.

    Each runs twice, the threads of a block in one order and in the other: not every missing barrier shows in both.

    Raises:
        InputError: g++ is missing, or refuses a source.
        DataError: a kernel and its twin differ.
    """
    emulated = Library(emulated=True)
    for library in (here(), emulated):
        library.build(folder)
        load(library, folder)
    order = ctypes.CDLL(str(emulated.path(folder))).ov_emulator_descending
    for op, case, results in extremes():
        worst, twins = 0.0, results(torch.ops.onevision)
        for descending in (1, 0):
            order(descending)
            for twin, kernel in zip(twins, results(torch.ops.onevision_emulated), strict=True):
                difference = relative_difference(kernel, twin)
                if not difference <= NEAR.get(twin.dtype, 0.0):
                    off = f"{difference:.1e} of the largest value"
                    raise DataError(f"{op}, {case}: the kernel is off its twin by {off}")
                worst = max(worst, difference)
        yield Comparison(op, case, worst)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest value; infinite for other shapes or dtypes."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.numel() or torch.equal(found, expected):
        return 0.0
    largest = expected.double().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found.double() - expected.double()).abs().max() / largest)
