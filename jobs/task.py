"""A rank of a job under Slurm: it finds its place in Slurm's variables, and leaves a record when it ends badly.

    python -m jobs.task RECIPE.yaml [key=value ...]      a rank of training, for the plain scripts of sbatch/
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle

from jobs.outcome import Outcome, outcome_of
from jobs.records import Records, leave_record
from onevision.errors import OneVisionError


class Task:
    """Picklable `call(*args)` of a queued job. submitit calls it in every rank that srun starts."""

    def __init__(self, records: Records, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.records = records
        # Loading it imports the job's modules: done in `__call__`, where errors are caught and signals heard.
        self._payload = cloudpickle.dumps((call, args))

    def __call__(self) -> None:
        record = enter_rank(self.records)
        outcome = outcome_of(self.records.name, self.records.log(_number("SLURM_JOB_ID"), _number("RANK")), self._work)
        end_rank(record, outcome)

    def checkpoint(self) -> Any:
        """submitit asks for it when the job's signal arrives before a rank listens to it itself: there is nothing to
        save, the job starts again from what stands on the disk."""
        from submitit.helpers import DelayedSubmission  # a plain sbatch script does without

        return DelayedSubmission(self)

    def _work(self) -> bytes:
        call, args = cloudpickle.loads(self._payload)
        return cloudpickle.dumps(call(*args))


def enter_rank(records: Records) -> Path:
    """Translate Slurm's variables into torch's; returns the file that this rank leaves if it ends badly.

    MASTER_ADDR and MASTER_PORT are set by the batch script: the first node of the job, a port made of the job's number.
    """
    rank = _number("SLURM_PROCID")
    record = records.rank(rank)
    local_size = os.environ["SLURM_STEP_TASKS_PER_NODE"].partition("(")[0]  # "8(x16)"
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=os.environ["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=local_size,
        RANK_RECORD=str(record),
    )
    return record


def end_rank(record: Path, outcome: Outcome) -> None:
    """Leave the record of a bad end and exit with its code, which srun hands to the batch script."""
    if outcome.exit_code:
        leave_record(record, outcome.exit_code, outcome.message)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(outcome.exit_code)  # what runs at a usual exit may wait for the other ranks (MPI_Finalize does)


def _number(name: str) -> int:
    return int(os.environ[name])


def main(recipe_file: str, *overrides: str) -> None:
    """A rank that trains a recipe."""
    from jobs.ranks import train_here
    from onevision.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides)
    records = Records(Path(recipe.output).absolute() / "log" / "slurm", recipe.name)
    Task(records, train_here, (recipe,))()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
