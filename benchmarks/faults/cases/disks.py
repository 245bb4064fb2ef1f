"""Disks that are full: before a save, while it is written, and while a row of the metrics is."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.faults.inputs import INTERVAL
from benchmarks.faults.lab import Case, NotHere, Place, Repair
from benchmarks.faults.moments import Call, Injection, Moment
from onevision.errors import StorageError

DISK = 100_000_000  # bytes; three checkpoints
CHECKPOINT = 30_500_000
FAULT = "disk full"
AT = 2 * INTERVAL  # the step of the second checkpoint
_PREPARED = Moment("", "onevision.training.checkpoint:Checkpointer._prepare", AT, after=True)


def fill(left: int, call: Call) -> None:
    """Take all but `left` bytes of the disk."""
    fill_disk(call.args[0].run, left)


def fill_metrics(call: Call) -> None:
    """Take all of the disk on which the metrics are."""
    fill_disk(Path(call.args[0]._path).parent, 0)


def small_files(size: int, call: Call) -> None:
    """Let no file of this process, and of those it starts, be larger than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill_disk(run: Path, left: int) -> None:
    """Take all but `left` bytes of the disk of a run."""
    with (run / "filler").open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(run).free - left))
        while left == 0:  # the last blocks
            try:
                file.write(bytes(4096))
                file.flush()
            except OSError:
                break


@contextmanager
def small_disk(left: int, place: Place) -> Iterator[Repair]:
    """The run folder is a file system of its own; all but `left` bytes are taken until the repair."""
    place.run.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place.run)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise NotHere(f"no right to mount a small disk ({mounted.stderr.strip().splitlines()[-1]})")
    try:
        if left:
            fill_disk(place.run, left)
        yield lambda: (place.run / "filler").unlink(missing_ok=True)
    finally:
        subprocess.run(["umount", str(place.run)], check=True)


def cases() -> list[Case]:
    """All kinds of full disks."""
    found = []
    for how, settings in (("sync", ("checkpoint.asynchronous=false",)), ("async", ())):
        full = Case(
            FAULT,
            f"before the second checkpoint ({how})",
            codes=(StorageError.exit_code,),
            line=r"needs \d+ MB and \d+ MB are free; earlier checkpoints are untouched",
            settings=settings,
            world=partial(small_disk, int(1.5 * CHECKPOINT)),
            resumed=INTERVAL,
        )
        within = Case(
            FAULT,
            f"while it is written ({how})",
            codes=(StorageError.exit_code,),
            line="No space left on device.*earlier checkpoints are untouched",
            settings=settings,
            injections={0: [Injection(_PREPARED, partial(fill, 5_000_000))]},
            world=partial(small_disk, 0),
            resumed=INTERVAL,
        )
        limit = Case(
            FAULT,
            f"a shard cannot grow: file size limit ({how})",
            2,
            (StorageError.exit_code,),
            "File too large.*earlier checkpoints are untouched",
            settings=settings,
            injections={0: [Injection(_PREPARED, partial(small_files, 2_000_000))]},
            resumed=INTERVAL,
        )
        found += [full, within, limit]
    row = Moment("", "onevision.training.metrics:Metrics.write", AT + 1)
    found.append(
        Case(
            FAULT,
            "while a row of metrics is written",
            codes=(StorageError.exit_code,),
            line="cannot write .*run/(metrics.jsonl|tensorboard): No space left on device",
            injections={0: [Injection(row, fill_metrics)]},
            world=partial(small_disk, 0),
            settings=("checkpoint.asynchronous=false",),
            resumed=AT,
        )
    )
    return found
