"""One writer at a time in a folder, whatever machine it is on. Needs no torch."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

from onevision.errors import Busy, InputError

PATIENCE = 120.0  # seconds


@contextmanager
def sole_writer(lock: Path, folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keep two processes from writing into `folder`; the file `lock` says which one does.

    It is a record lock, which forked helpers do not inherit: it ends with this process, however that ends. The lock of
    a node that died lingers on a shared file system, for NFS until its lease is over (90 s): it is waited for, up to
    `patience` seconds. A holder that lives on this machine is not.

    Raises:
        Busy: another process holds it.
        InputError: the file system has no locks.
    """
    with _acquired(lock, folder, patience) as file:
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


@contextmanager
def step_writer(folder: Path) -> Iterator[None]:
    """As `sole_writer`, for a step that makes `folder` beside it: the file is gone when the step has ended.

    Raises:
        Busy, InputError: as `sole_writer`.
    """
    lock = folder.with_name(f".{folder.name}.writer")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(lock, folder):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _acquired(lock: Path, folder: Path, patience: float) -> Iterator[TextIO]:
    """The file, once this process has its lock and it is still the one of that name."""
    while True:
        with lock.open("a+") as file:
            _acquire(file, lock, folder, patience)
            try:
                current = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:  # whoever held it has ended well, and removed it
                current = False
            if current:
                yield file
                return


def _acquire(file: TextIO, lock: Path, folder: Path, patience: float) -> None:
    end = time.monotonic() + patience
    announced = False
    while True:
        try:
            return fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN, EACCES: it is held
            pass
        except OSError as error:
            what = f"{lock} cannot be locked: {error.strerror}"
            raise InputError(f"{what}; choose an output on a file system with locks") from None
        file.seek(0)
        holder = file.read().strip() or "unknown"
        known = re.fullmatch(r"(\d+) on (.+)", holder)
        alive = known is not None and known[2] == platform.node() and psutil.pid_exists(int(known[1]))
        if alive or time.monotonic() >= end:
            raise Busy(f"{folder} is being written by process {holder}: wait for it or stop it")
        if not announced:
            print(f"{folder} is held by process {holder}: waiting up to {patience:g} s for it to end", flush=True)
            announced = True
        time.sleep(min(0.5, patience))
