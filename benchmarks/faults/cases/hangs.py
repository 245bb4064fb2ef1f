"""Ranks that do not answer, and writers that die: found by the heartbeat of the others, with their stacks."""

from __future__ import annotations

from benchmarks.faults.inputs import INTERVAL
from benchmarks.faults.job import End
from benchmarks.faults.lab import Case, Place
from benchmarks.faults.moments import Injection, Moment, freeze, kill_writer
from onevision.errors import Hung, StorageError

SECONDS = 8  # set-up of ranks that share two cores with others is a part of it
_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async:"


def cases() -> list[Case]:
    """Frozen ranks and dead writers."""
    frozen = "rank frozen"
    moments = (
        (1, Moment("reading data", "onevision.data.staging:Staging.receive", 3), "computing"),
        (0, Moment("forward", "onevision.model.adapter:PatchMerger.forward", 4), "computing"),
        (1, Moment("save", "onevision.training.checkpoint:Checkpointer._prepare", 2 * INTERVAL, after=True), "saving"),
    )
    found = [
        Case(
            frozen,
            f"{moment.text} (rank {rank})",
            2,
            (Hung.exit_code,),
            f"hung: step {moment.step}, {phase} took more than {SECONDS} s; the stacks of all threads are in the",
            injections={rank: [Injection(moment, freeze)]},
            settings=(f"train.hang_seconds={SECONDS}",),
            check=_stacks,
        )
        for rank, moment, phase in moments
    ]
    written = Moment("", f"{_WRITER}FileSystemWriterAsync.write_preloaded_data_multiproc", INTERVAL)
    part = Moment("", f"{_WRITER}_write_item", INTERVAL, number=20)
    return found + [
        Case(
            "writer killed",
            "the asynchronous writer",
            2,
            (StorageError.exit_code,),
            "could not be saved: .*earlier checkpoints are untouched",
            injections={0: [Injection(written, kill_writer)]},
        ),
        Case(
            "writer killed",
            "a process of the writer",
            1,
            (Hung.exit_code,),
            rf"hung: step \d, saving took more than {SECONDS} s",
            injections={0: [Injection(part, kill_writer)]},
            settings=(f"train.hang_seconds={SECONDS}",),
        ),
    ]


def _stacks(place: Place, end: End) -> list[str]:
    """The rank that found the hang has left the stacks of its threads."""
    found = [log for log in end.logs if end.line in log and "training/loop.py" in log.partition(end.line)[2]]
    return [] if found else ["no rank has left its stacks"]
