"""Copies on the node: a restart goes on from them when all ranks have one, else from the checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.faults.cases.checkpoints import flip, remove, truncate
from benchmarks.faults.cases.disks import small_files
from benchmarks.faults.cases.kills import PIPELINE, TENSOR
from benchmarks.faults.job import KILLED, End
from benchmarks.faults.lab import Case, Place, Repair
from benchmarks.faults.moments import Injection, Moment, kill
from onevision.errors import InputError, StorageError

FAULT = "local copies"
SETTINGS = ("checkpoint.local={folder}/node", "checkpoint.local_interval=1")
DIES_IN = 6  # the newest checkpoint is of step 4, the newest local copies of step 5
LINE = "was killed from outside"


def cases() -> list[Case]:
    """Used; damaged on one rank; of another step, history, rank, layout or run; no room."""
    dies = [Injection(Moment("", "onevision.model.adapter:PatchMerger.forward", DIES_IN), kill)]
    half = [Injection(Moment("", "torch:save", DIES_IN - 1, number=1, after=True), kill)]
    killed = partial(Case, FAULT, codes=(KILLED,), line=LINE, settings=SETTINGS, final=_gone)
    disturbed = partial(killed, ranks=2, injections={1: dies})
    saved = (*SETTINGS, "checkpoint.asynchronous=false")
    checkpoint = partial(disturbed, settings=saved, resumed=4)
    part = "rank 1: .*step_00000005.*; the checkpoint of step 4 used"
    none = r"none of the same step and start \(rank 0: 5; rank 1: none\); the checkpoint of step 4 used"
    return [
        disturbed("all ranks have them", resumed=5),
        killed("one rank", ranks=1, injections={0: dies}, resumed=5),
        disturbed("with BF16", reference=("train.precision=bf16",), resumed=5),
        disturbed("tensor-parallel", reference=TENSOR, resumed=5),
        disturbed("in a pipeline", injections={0: dies}, reference=PIPELINE, resumed=5),
        killed("killed while one is written", ranks=2, injections={0: half}, settings=saved, resumed=4),
        checkpoint("of one rank truncated", world=partial(_damaged, truncate, "step_00000005.pt"), said=part),
        checkpoint(
            "of one rank with one bit changed",
            world=partial(_damaged, flip, "step_00000005.pt"),
            said="step_00000005.pt was altered.*; the checkpoint of step 4 used",
        ),
        checkpoint("of one rank: record damaged", world=partial(_damaged, truncate, "step_00000005.json"), said=part),
        checkpoint("of one rank missing", world=partial(_damaged, remove, "step_00000005.json"), said=none),
        checkpoint("of one rank gone with its node", world=_gone_with_node, said=none),
        checkpoint("of another layout", world=_other_layout, said="rank 1: that of step 5 is of another layout"),
        checkpoint(
            "of steps that another start did again",
            world=_done_again,
            said="that of step 5 is of steps that were done again since; the checkpoint of step 4 used",
        ),
        disturbed("with those of a rank that is gone", world=_more_ranks, resumed=5),
        disturbed(
            "the newest of one rank damaged, the one before is whole",
            settings=(*saved, "checkpoint.interval=3"),
            world=partial(_damaged, flip, "step_00000005.pt"),
            resumed=4,
            said="step_00000005.pt was altered.*; those of step 4 used",
        ),
        Case(
            FAULT,
            "of another run",
            2,
            (InputError.exit_code,),
            "holds local copies of run /elsewhere: choose another folder",
            settings=SETTINGS,
            world=_other_run,
            final=_gone,
        ),
        Case(
            FAULT,
            "no room for them",
            2,
            (StorageError.exit_code,),
            "local copy .* could not be written: File too large; checkpoints are untouched",
            settings=SETTINGS,
            injections={
                1: [Injection(Moment("", "onevision.training.loop:start", 0), partial(small_files, 2_000_000))]
            },
            final=_gone,
        ),
    ]


@contextmanager
def _damaged(damage: Callable[[Path], None], name: str, place: Place) -> Iterator[Repair]:
    yield lambda: damage(place.folder / "node" / "rank_00001" / name)


@contextmanager
def _gone_with_node(place: Place) -> Iterator[Repair]:
    yield lambda: shutil.rmtree(place.folder / "node" / "rank_00001")


@contextmanager
def _other_layout(place: Place) -> Iterator[Repair]:
    def change() -> None:
        for record in (place.folder / "node" / "rank_00001").glob("*.json"):
            text = record.read_text(encoding="utf-8")
            record.write_text(re.sub(r'"tensor": 1', '"tensor": 2', text), encoding="utf-8")

    yield change


@contextmanager
def _done_again(place: Place) -> Iterator[Repair]:
    """What a start without these copies leaves, on other nodes and from the checkpoint."""
    yield lambda: (place.run / "local_copies.json").write_text('{"start": "of another node"}') and None


@contextmanager
def _more_ranks(place: Place) -> Iterator[Repair]:
    ranks = place.folder / "node"
    yield lambda: shutil.copytree(ranks / "rank_00001", ranks / "rank_00002") and None


@contextmanager
def _other_run(place: Place) -> Iterator[Repair]:
    owner = place.folder / "node" / "run.json"
    owner.parent.mkdir(parents=True)
    owner.write_text(json.dumps({"run": "/elsewhere", "id": "0"}), encoding="utf-8")
    yield owner.unlink


def _gone(place: Place, end: End) -> list[str]:
    left = place.folder / "node"
    return [f"{left} was left behind"] if left.exists() else []
