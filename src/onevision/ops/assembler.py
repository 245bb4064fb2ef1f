"""What the assembler tells of kernels that were compiled for a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onevision.ops.build import run

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture. Registers of a thread; bytes of a thread's stack and spills, of a block's shared
    memory."""

    name: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def read_kernels(said: str) -> list[Kernel]:
    """The kernels of which `nvcc -Xptxas -v` printed `said`."""
    found = []
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", said):
        entry, spills, used = _ENTRY.search(part), _SPILLS.search(part), _USED.search(part)
        if entry and spills and used:
            name = _readable(entry[1])
            stack, stores, loads = map(int, spills.groups())
            found.append(Kernel(name, entry[2], int(used[1]), stack, stores, loads, int(used[2] or 0)))
    return found


def _readable(mangled: str) -> str:
    name = run(["c++filt", mangled]).strip()
    return re.sub(r"^void |\(.*$", "", name.replace("(anonymous namespace)::", ""))
