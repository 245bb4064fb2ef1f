"""Checkpoints that are damaged where they lie: the newest that is whole is used, and when none is, a person is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.faults.inputs import INTERVAL, STEPS
from benchmarks.faults.lab import Case, Place, Repair
from onevision.errors import DataError, InputError
from onevision.training.checkpoint_files import step_folder

FILES = ("__0_0.distcp", "__0_1.distcp", ".metadata", "common.pt", "metadata.json", "checkpoint.json")
NEWEST, BEFORE = STEPS, STEPS - INTERVAL

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    """Cut a file in half."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def cases() -> list[Case]:
    """Every file of the newest checkpoint in turn, and all checkpoints at once."""
    found = [
        Case(
            "checkpoint damaged",
            f"{name} {how}",
            line=f"skipping checkpoint .*step_{NEWEST:08d}: .*{name if name != 'checkpoint.json' else ''}",
            world=partial(_damaged, damage, name),
            finished=True,
            resumed=BEFORE,
        )
        for name in FILES
        for damage, how in ((truncate, "truncated"), (flip, "with one bit changed"), (remove, "missing"))
        if damage is not remove or name in ("__0_1.distcp", "checkpoint.json")
    ]
    found.append(
        Case(
            "checkpoint damaged",
            "all of the run",
            codes=(DataError.exit_code,),
            line="holds no checkpoint that is whole, and is not started over",
            world=_all_damaged,
            finished=True,
        )
    )
    found.append(
        Case(
            "checkpoint damaged",
            "all that there is to start from",
            codes=(InputError.exit_code,),
            line="holds no checkpoint",
            world=_start_damaged,
            settings=("train.init_from={folder}/before",),
            ends_here=True,
        )
    )
    return found


@contextmanager
def _damaged(damage: Damage, name: str, place: Place) -> Iterator[Repair]:
    damage(step_folder(place.run, NEWEST) / name)
    yield lambda: None


@contextmanager
def _all_damaged(place: Place) -> Iterator[Repair]:
    shards = [step_folder(place.run, step) / FILES[0] for step in (NEWEST, BEFORE)]
    whole = {path: path.read_bytes() for path in shards}
    for path in shards:
        flip(path)

    def repair() -> None:
        for path, data in whole.items():
            path.write_bytes(data)

    yield repair


@contextmanager
def _start_damaged(place: Place) -> Iterator[Repair]:
    folder = step_folder(place.folder / "before", NEWEST)
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text('{"step": 6}\n', encoding="utf-8")
    yield lambda: None
