"""The jobs of the CUDA ops: build the library for this machine, and prove what can be proved without a GPU."""

from __future__ import annotations

import importlib.util

from rich.console import Console
from rich.table import Table

from onevision.errors import InputError
from onevision.ops.check import compare_all, compile_all
from onevision.ops.library import here, load


def run(arguments: list[str]) -> int:
    """python -m jobs cuda

    Builds the ops of cuda/ into cuda/build: kernels for the GPUs of this machine, and their twins for the CPU.
    """
    _no_arguments("cuda", arguments)
    library = here()
    path = library.build()
    load(library)
    names = ", ".join(f"sm_{architecture}" for architecture in library.architectures)
    print(f"{path} ({names or 'no GPU here: the twins on the CPU'})")
    return 0


def run_check(arguments: list[str]) -> int:
    """python -m jobs cuda-check

    Compiles every kernel for sm_80 and sm_90, warnings being errors, and prints what it takes of a GPU. Then runs every
    kernel's source on the CPU, on ragged extremes, and compares it with its twin. Where Triton is installed its kernels
    are compiled for the same GPUs.
    """
    _no_arguments("cuda-check", arguments)
    console = Console()
    costs = Table("kernel", "GPU", "registers", "stack", "spilled", "shared", title="Compiled")
    for kernel in compile_all():
        spilled = f"{kernel.spill_stores + kernel.spill_loads} B"
        costs.add_row(
            kernel.name, f"sm_{kernel.architecture}", str(kernel.registers), f"{kernel.stack} B", spilled,
            f"{kernel.shared} B",
        )
    console.print(costs)
    compared = Table("op", "case", "largest difference", title="Executed on the CPU, against the twins")
    for result in compare_all():
        compared.add_row(result.op, result.case, f"{result.difference:.1e}" if result.difference else "equal")
    console.print(compared)
    _check_triton(console)
    return 0


def _check_triton(console: Console) -> None:
    if importlib.util.find_spec("triton") is None:
        print("The Triton kernels of the layers: not checked, Triton is not installed (pip install triton)")
        return
    from onevision.model.triton_check import compiled

    table = Table("kernel", "shape", "GPU", "registers", "stack", "widest load", "store", title="Triton, compiled")
    for one in compiled():
        widths = (f"{one.widest_load} B", f"{one.widest_store} B")
        table.add_row(one.name, one.case, f"sm_{one.architecture}", str(one.registers), f"{one.stack} B", *widths)
    console.print(table)


def _no_arguments(job: str, arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"{job} takes no arguments, not {' '.join(arguments)}")
