"""Section 2: the ops of cuda/, compiled for this GPU; and what later sections need of the CPU alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.checks import Findings, NotChecked, say
from onevision.ops.assembler import read_kernels
from onevision.ops.library import here, load


def check(findings: Findings, scratch: Path, corpus: str = "1") -> None:
    """Build the library where it does not stand already, load it, and read what its kernels take of the GPU.

    With `corpus` the corpus of the parity runs is made meanwhile: nothing is timed here.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.corpus", str(scratch)]
    ahead = subprocess.Popen(command) if corpus == "1" else None
    try:
        _build(findings)
    finally:
        if ahead is not None and ahead.wait():
            say("the corpus of the parity runs was not made ahead: its section tries again")


def _build(findings: Findings) -> None:
    library = here()
    for compiler in ("g++", "nvcc") if library.architectures else ("g++",):
        if shutil.which(compiler) is None:
            raise NotChecked(f"{compiler} is not on PATH")
    stood = library.path().exists()
    began = time.perf_counter()
    path = library.build()
    seconds = time.perf_counter() - began
    findings.fact("compiling", seconds, "s", "it stood already" if stood else path.name)
    load(library)
    kernels = read_kernels(path.with_suffix(".log").read_text())
    if not kernels:
        findings.unchecked("registers and spills", "no GPU here: the library has the twins alone")
        return
    findings.facts["kernels"] = [vars(kernel) for kernel in kernels]
    most = max(kernels, key=lambda kernel: kernel.registers)
    findings.fact("kernels", len(kernels), "", f"most registers: {most.registers}, {most.name}")
    spilled = sum(kernel.spill_stores + kernel.spill_loads for kernel in kernels)
    findings.goal("spilled registers", spilled, "B", "none", spilled == 0)
    say(f"{len(kernels)} kernels in {seconds:.0f} s")
