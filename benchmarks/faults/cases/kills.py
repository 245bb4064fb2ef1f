"""kill -9 of a rank: at every phase of a step, at every step of a save, and at random times."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.faults.inputs import INTERVAL, STEPS
from benchmarks.faults.job import KILLED
from benchmarks.faults.lab import Case
from benchmarks.faults.moments import Action, Call, Injection, Moment, kill
from onevision.training.history import read_metrics

FAULT = "rank killed"
LINE = "was killed from outside"
BEFORE = "train.init_from={before}"
TENSOR, PIPELINE = ("parallel.tensor=2", BEFORE), ("parallel.pipeline=2", BEFORE)
SYNC = ("checkpoint.asynchronous=false",)
_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async:"
_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"


def half_a_row(call: Call) -> None:
    """Die in the middle of writing a row of metrics.jsonl."""
    metrics = call.args[0]
    metrics._file.write('{"loss": 1.2')
    metrics._file.flush()
    kill(call)


def half_removed(call: Call) -> None:
    """Die while the folder of an old checkpoint is being removed."""
    for path in sorted(Path(call.args[0]).iterdir())[:2]:
        path.unlink()
    kill(call)


@dataclass(frozen=True)
class _At:
    """A place where a rank may be killed. `steps`: in which it can be; `victim`: the only rank that comes by."""

    moment: Moment
    ranks: int
    steps: Sequence[int] = tuple(range(2, STEPS + 1))
    victim: int | None = None
    settings: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()
    action: Action = kill
    launcher: bool = True


_SAVES = tuple(range(INTERVAL, STEPS + 1, INTERVAL))
_PLACES = (
    _At(Moment("joining the others", "onevision.training.loop:start"), 2, (0,)),
    _At(Moment("building the model", "onevision.training.loop:build_parts", after=True), 1, (0,)),
    _At(Moment("reading data", "onevision.data.loader:PackLoader._batch"), 2),
    _At(Moment("forward, after vision", "onevision.model.adapter:PatchMerger.forward"), 2),
    _At(Moment("backward", "onevision.model.adapter:PatchMerger.forward", gradient=True), 2),
    _At(Moment("gradients are summed", "onevision.training.optimizer:finalize_model_grads"), 2, launcher=False),
    _At(Moment("forward, tensor-parallel", "onevision.model.adapter:PatchMerger.forward"), 2, layout=TENSOR),
    _At(
        Moment("backward, in a pipeline", "onevision.model.adapter:PatchMerger.forward", gradient=True),
        2,
        victim=0,
        layout=PIPELINE,
    ),
    _At(Moment("optimizer, before the update", f"{_OPTIMIZER}.step_with_ready_grads"), 2),
    _At(Moment("optimizer, after the update", f"{_OPTIMIZER}.step_with_ready_grads", after=True), 4),
    _At(Moment("half a row of metrics", "onevision.training.metrics:Metrics.write"), 1, victim=0, action=half_a_row),
    _At(Moment("sync save: folder made", "onevision.training.checkpoint:Checkpointer._prepare", after=True), 2, _SAVES),
    _At(Moment("sync save: half a shard", f"{_WRITER}_write_item", number=20), 2, _SAVES, victim=0, settings=SYNC),
    _At(Moment("async save: half a shard", f"{_WRITER}_write_item", number=20), 2, _SAVES[:-1], victim=0),
    _At(Moment("save: shards written", "onevision.training.checkpoint:commit"), 2, _SAVES, victim=0, settings=SYNC),
    _At(
        Moment("save: before the rename", "onevision.training.checkpoint_files:_sync", after=True),
        1,
        _SAVES,
        settings=SYNC,
    ),
    _At(
        Moment("save: after the rename", "onevision.training.checkpoint_files:checkpoint_steps"),
        1,
        _SAVES,
        settings=SYNC,
    ),
    _At(
        Moment("save: an old one half removed", "shutil:rmtree", number=2),
        1,
        _SAVES[-1:],
        settings=SYNC,
        action=half_removed,
    ),
    _At(Moment("before the summary", "onevision.training.loop:write_json"), 2, (STEPS,), victim=0),
    _At(Moment("summary written, not renamed", "pathlib:Path.replace", number=2), 1, (STEPS,), settings=SYNC),
)


def cases(chance: random.Random) -> list[Case]:
    """The kills; steps, victims and times are drawn."""
    found = [_exact(place, chance) for place in _PLACES]
    for number in range(6):
        ranks = (1, 2, 1, 2, 2, 4)[number]
        victim, rows, share = chance.randrange(ranks), chance.randrange(STEPS), chance.random()
        found.append(
            Case(
                FAULT,
                f"at a random time ({number + 1})",
                ranks,
                (KILLED, 0),
                "",
                outside=partial(kill_later, victim, rows, share),
            )
        )
    by_hand = partial(Case, FAULT, ranks=2, codes=(KILLED,), line=LINE, command=True)
    found.append(by_hand("under `python -m jobs train`", outside=partial(kill_later, 1, 3, 0.1)))
    return found


def _exact(place: _At, chance: random.Random) -> Case:
    victim = chance.randrange(place.ranks) if place.victim is None else place.victim
    moment = place.moment
    if place.steps != (0,):
        moment = replace(moment, step=chance.choice(place.steps))
    launched = "" if place.launcher else ", nobody kills the others"
    who = f" (rank {victim})" if place.ranks > 1 else ""
    return Case(
        FAULT,
        f"{moment.text}{who}{launched}",
        place.ranks,
        (KILLED,),
        LINE,
        injections={victim: [Injection(moment, place.action)]},
        settings=place.settings,
        reference=place.layout,
        launcher=place.launcher,
    )


def kill_later(victim: int, rows: int, share: float, pids: Sequence[int], run: Path) -> None:
    """Kill a rank some time after so many rows; `share` of a second, or sooner if it ends."""
    while len(read_metrics(run)) < rows and _alive(pids[victim]):
        time.sleep(0.005)
    time.sleep(share)
    if _alive(pids[victim]):
        os.kill(pids[victim], signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
