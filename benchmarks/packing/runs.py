"""Packing a synthetic corpus in processes of their own: alone, under mpiexec, and killed in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MPIEXEC = Path(sys.executable).with_name("mpiexec")


def command(corpus: Path, output: Path, ranks: int, settings: dict[str, int]) -> list[str]:
    """The command that packs; with 0 ranks, without MPI."""
    program = ["-m", "benchmarks.packing.pack", str(corpus), str(output)]
    program += [f"{key}={value}" for key, value in settings.items()]
    if not ranks:
        return [sys.executable, *program]
    return [str(MPIEXEC), "-n", str(ranks), sys.executable, "-m", "mpi4py", *program]


def pack(corpus: Path, output: Path, ranks: int = 0, **settings: int) -> dict[str, Any]:
    """Pack anew; what benchmarks/packing/pack.py says of it."""
    shutil.rmtree(output, ignore_errors=True)
    return finish(corpus, output, ranks, **settings)


def finish(corpus: Path, output: Path, ranks: int = 0, **settings: int) -> dict[str, Any]:
    """Pack, or go on with what a killed run has left."""
    job = subprocess.run(command(corpus, output, ranks, settings), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(job.stdout.splitlines()[-1])


def kill_after(corpus: Path, output: Path, ranks: int, parts: int, **settings: int) -> int:
    """Start packing, and kill all ranks (SIGKILL) once `parts` parts are there; returns how many there are then."""
    work = output.with_name(f".{output.name}.parts")
    job = subprocess.Popen(command(corpus, output, ranks, settings), start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while len(list(work.glob("part-*.json"))) < parts and job.poll() is None:
            time.sleep(0.002)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    return len(list(work.glob("part-*.json")))
