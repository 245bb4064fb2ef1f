"""One `packs.h5` that holds its columns itself, in the place of a master file of virtual datasets and its part files.

This module needs h5py, NumPy and the communicator it is given, nothing else, so that it also runs in a Python whose
h5py was built with MPI and that has nothing more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py


def merge_parts(
    master: Path, first: str, communicator: Any = None, seal: Callable[[Path], None] = lambda path: None
) -> None:
    """Make `master`, whose columns lie in part files, a file that holds them; does nothing where it does already.

    Each rank of the communicator copies its share of the parts, all at the same time (HDF5's mpio). A process that is
    killed leaves the old files.

    Args:
        master: the file; /parts/name lists the part files beside it.
        first: the one dataset that lies in the master itself; it has one row more than the columns of packs.
        communicator: mpi4py's; None: this process is alone.
        seal: what puts the seal at the end of the written file, without which it is not opened.

    Raises:
        OSError: as any write; there is not enough room.
    """
    rank, size = (communicator.Get_rank(), communicator.Get_size()) if communicator else (0, 1)
    temporary = master.with_name(f".{master.name}.tmp")
    with h5py.File(master, "r") as source:
        names = source["parts/name"].asstr()[()].tolist() if "parts" in source else []
        columns = {name: source[name] for name in source if isinstance(source[name], h5py.Dataset) and name != first}
        if names:
            _check_room(master.parent, sum(column.nbytes for column in columns.values()) + source[first].nbytes)
            parallel = {"driver": "mpio", "comm": communicator} if communicator else {}
            with h5py.File(temporary, "w", libver=("v110", "v110"), **parallel) as target:
                target.attrs.update(source.attrs)
                start = target.create_dataset(first, source[first].shape, source[first].dtype)
                made = {name: target.create_dataset(name, it.shape, it.dtype) for name, it in columns.items()}
                if rank == 0:
                    start[:] = source[first][()]
                _copy(master.parent, names, made, rank, size)
    if communicator:
        communicator.Barrier()
    if rank == 0:
        if names:
            seal(temporary)
            temporary.replace(master)
        for part in master.parent.glob(f"{master.stem}-*{master.suffix}"):
            part.unlink()
    if communicator:
        communicator.Barrier()


def _copy(folder: Path, parts: list[str], columns: dict[str, h5py.Dataset], rank: int, size: int) -> None:
    """Copy the columns of every `size`-th part to their place."""
    place = dict.fromkeys(columns, 0)
    for number, part in enumerate(parts):
        with h5py.File(folder / part, "r") as source:
            for name, column in columns.items():
                rows = len(source[name])
                if number % size == rank and rows:
                    column[place[name] : place[name] + rows] = source[name][()]
                place[name] += rows


def _check_room(folder: Path, size: int) -> None:
    """HDF5 cannot close its file any more once the disk is full: so look before.

    Raises:
        OSError: there are less than `size` bytes.
    """
    state = os.statvfs(folder)
    if state.f_bavail * state.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
