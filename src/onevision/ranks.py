"""The processes that share a data step: those that mpiexec or srun has started, or this one alone.

A step sends each other only what does not grow with the number of samples: histograms and counts.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.errors import InputError

# One of them is set by every launcher: MPICH, Intel MPI and Slurm's pmi2; Open MPI; pmix.
_LAUNCHED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1e-4, 1e-2  # seconds between two looks at whether the others are there


class Ranks:
    """This process among `size`. Without a communicator it is alone, and mpi4py is not needed."""

    def __init__(self, communicator: Any = None) -> None:
        self._communicator = communicator
        self.rank: int = communicator.Get_rank() if communicator else 0
        self.size: int = communicator.Get_size() if communicator else 1

    @property
    def communicator(self) -> Any:
        """mpi4py's communicator, for libraries that want one; None when this process is alone."""
        return self._communicator

    def first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        self.wait()
        return self._communicator.bcast(value) if self._communicator else value

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks in their order, on every rank."""
        self.wait()
        return self._communicator.allgather(value) if self._communicator else [value]

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Element-wise sum of the ranks' arrays (same shape and dtype), on every rank."""
        if not self._communicator:
            return values
        self.wait()
        total = np.empty_like(values)
        self._communicator.Allreduce(np.ascontiguousarray(values), total)
        return total

    def local_rank(self) -> int:
        """Number of this rank among those of its node; all ranks call it."""
        if not self._communicator:
            return 0
        from mpi4py import MPI

        self.wait()
        node = self._communicator.Split_type(MPI.COMM_TYPE_SHARED)
        try:
            return int(node.Get_rank())
        finally:
            node.Free()

    def wait(self) -> None:
        """Sleep until every rank is here. An MPI library asks over and over instead, which takes the core of a rank
        that still works where there are more ranks than cores.
        """
        if self._communicator:
            everyone, pause = self._communicator.Ibarrier(), _SHORTEST_PAUSE
            while not everyone.Test():
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def abort(self, exit_code: int) -> None:
        """End all ranks: one that failed must not leave the others waiting. Does nothing when alone."""
        if self._communicator and self.size > 1:
            self._communicator.Abort(exit_code)


ALONE = Ranks()


def find_ranks() -> Ranks:
    """The ranks among which this process was started.

    Raises:
        InputError: it was started by an MPI launcher and mpi4py or the MPI library is missing.
    """
    launched = [name for name in _LAUNCHED if name in os.environ]
    if not launched:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"started as one of several MPI processes ({launched[0]}={os.environ[launched[0]]}), but MPI cannot be "
            f"used: {error}; install mpi4py and an MPI library, or start one process"
        ) from None
    return Ranks(MPI.COMM_WORLD)
