"""What can happen to a job on a cluster, done to real ones: each case disturbs a run and looks at what is left."""

from __future__ import annotations

import datetime
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.slurm.lab import Lab, LabError
from jobs.place import Place
from jobs.records import Records
from jobs.slurm import Queued
from jobs.train import train_at
from onevision.files import read_json
from onevision.recipe import Recipe, load_recipe
from onevision.training.history import read_metrics

NODES = 2
INTERVAL = 10  # steps between checkpoints
AT_STEP = 13  # a run is disturbed after this step: three after a checkpoint
SETTINGS = (
    "train.steps=28",
    "train.global_batch_size=2",
    f"checkpoint.interval={INTERVAL}",
    "checkpoint.asynchronous=false",
    "train.hang_seconds=180",  # joining the other ranks is a part of it, and many start at once on few cores
)
_SECONDS = 600.0  # that any part of a case may take: a machine may be busy with something else
_PAUSE, _ASKING = 0.1, 0.5  # seconds between two looks: at a file; at Slurm, which costs it and this machine 10 ms


@dataclass(frozen=True)
class Run:
    """A training job of the local cluster."""

    lab: Lab
    recipe: Recipe
    job_id: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output)

    @property
    def records(self) -> Records:
        """Files of the queued job."""
        return Records(self.folder.absolute() / "log" / "slurm", self.recipe.name)

    @property
    def step(self) -> int:
        """The last step in its metrics."""
        rows = read_metrics(self.folder)
        return rows[-1]["step"] if rows else 0

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes it runs on, the batch host first."""
        return self.lab.slurm.ask("scontrol", "show", "hostnames", self.queued().nodes).split()

    def queued(self) -> Queued:
        """Its line in squeue.

        Raises:
            LabError: it has none.
        """
        found = self.lab.slurm.queue().get(self.job_id)
        if found is None:
            raise LabError(f"job {self.job_id} is not in the queue")
        return found

    def wait_step(self, step: int) -> None:
        """Wait until a step is done."""
        self.wait(lambda: self.step >= step, f"step {step}")

    def wait_end(self) -> None:
        """Wait until the job has left the queue."""
        self.wait(lambda: self.job_id not in self.lab.slurm.queue(), "its end", ended_is_wrong=False, pause=_ASKING)

    def wait(self, met: Callable[[], bool], what: str, *, ended_is_wrong: bool = True, pause: float = _PAUSE) -> None:
        """Wait until something is so, with `pause` seconds between two looks.

        Raises:
            LabError: it took too long, or the job ended before.
        """
        until = time.monotonic() + _SECONDS
        while not met():
            ends = [row for row in self.records.events() if row["event"] == "end"]
            if ended_is_wrong and ends and ends[-1]["decision"] != "requeue":
                raise LabError(f"{self.folder}: ended before {what}: {ends[-1]['message'] or ends[-1]['cause']}")
            if time.monotonic() > until:
                raise LabError(f"{self.folder}: {what} did not come within {_SECONDS:.0f} s")
            time.sleep(pause)


@dataclass(frozen=True)
class Result:
    """What is left of a disturbed run."""

    case: str
    done: str
    restarts: int
    lost: int  # steps that were done again, because no checkpoint had them
    missing: int  # steps of the history that are not there
    doubled: int  # steps that are there twice
    difference: float  # largest difference of a loss from the undisturbed run
    seconds: float  # from the disturbance to the first new step
    causes: tuple[str, ...]  # how the starts ended

    @property
    def whole(self) -> bool:
        """Whether the history is that of the undisturbed run, to the last bit."""
        return not self.missing and not self.doubled and self.difference == 0


@dataclass(frozen=True)
class Case:
    """`disturb` does something to a run that is in the middle of its work."""

    name: str
    done: str
    disturb: Callable[[Run], None]
    causes: tuple[str, ...]  # how the disturbed start may end, of those in jobs/starts.py
    settings: tuple[str, ...] = ()


def _time_limit(run: Run) -> None:
    change = ("scontrol", "update", f"JobId={run.job_id}")
    # A long step: Slurm looks at limits every 30 s. With the job's signal it wakes the rank up.
    run.lab.signal_rank(run.job_id, NODES - 1, signal.SIGSTOP)
    end = datetime.datetime.now() + datetime.timedelta(seconds=85)
    run.lab.slurm.ask(*change, f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
    run.wait(lambda: run.queued().state != "RUNNING", "the time limit", pause=_ASKING)
    run.lab.slurm.ask(*change, "TimeLimit=1-00:00:00")


def _requeue(run: Run) -> None:
    run.lab.slurm.ask("scontrol", "requeue", str(run.job_id))


def _preempt(run: Run) -> None:
    nodes = ("-p", "urgent", "-N", str(NODES), "-w", run.queued().nodes, "--exclusive")
    run.lab.slurm.ask("sbatch", *nodes, "--output=/dev/null", "--wrap=sleep 2")


def _kill_node(which: int) -> Callable[[Run], None]:
    def kill(run: Run) -> None:
        node = run.nodes[which]
        run.lab("kill-node", node)
        down = ("sinfo", "-h", "-N", "-t", "down", "-o", "%N")
        run.wait(lambda: node in run.lab.slurm.ask(*down).split(), f"{node} being seen as down", pause=_ASKING)
        # A node that comes back sooner is told once more to end the job, and ends its new start with it.
        run.wait(lambda: sum(row["event"] == "start" for row in run.records.events()) > 1, "another start")
        run.lab("start-node", node)

    return kill


def _signal_rank(signum: signal.Signals) -> Callable[[Run], None]:
    return lambda run: run.lab.signal_rank(run.job_id, NODES - 1, signum)


def _restart_controller(run: Run) -> None:
    run.lab("kill-controller")
    time.sleep(2)
    run.lab("start-controller")
    run.lab.slurm.ask("scontrol", "ping")


CASES = (
    Case("time limit", "limit lowered to 85 s: Slurm sends USR2", _time_limit, ("interrupted",)),
    Case("USR2", "scancel --signal=USR2", lambda run: run.lab.slurm.cancel(run.job_id, "USR2"), ("interrupted",)),
    Case("TERM", "scancel --signal=TERM", lambda run: run.lab.slurm.cancel(run.job_id, "TERM"), ("interrupted",)),
    Case("preemption", "a job of a higher partition takes its nodes", _preempt, ("interrupted",)),
    Case("requeue by hand", "scontrol requeue", _requeue, ("interrupted", "lost")),
    Case("rank killed", "SIGKILL of one rank", _signal_rank(signal.SIGKILL), ("crashed",)),
    Case("batch host dies", "all processes of the first node killed", _kill_node(0), ("lost",)),
    Case("other node dies", "all processes of the last node killed", _kill_node(-1), ("crashed", "lost")),
    Case("rank hangs", "SIGSTOP of one rank", _signal_rank(signal.SIGSTOP), ("hung",), ("train.hang_seconds=40",)),
    # The last one: see tests/slurm/test_cases.py.
    Case("controller restarts", "slurmctld killed, 2 s without it", _restart_controller, ("finished",)),
)


def submit(lab: Lab, place: Place, recipe_file: Path, output: Path, *settings: str) -> Run:
    """Queue a training job of the recipe."""
    recipe = load_recipe(recipe_file, [*settings, f"name={output.name}", f"output={output}"])
    train_at(recipe, place)
    job_id = read_json(Run(lab, recipe, 0).records.job)["job_id"]
    return Run(lab, recipe, job_id)


def disturb(case: Case, run: Run) -> float:
    """Disturb a run in the middle of its work; the time at which it was done, in Unix seconds."""
    run.wait_step(AT_STEP)
    began = time.time()
    case.disturb(run)
    return began


def result(case: Case, run: Run, undisturbed: Path, disturbed_at: float) -> Result:
    """Wait for the end of a disturbed run and compare it with the undisturbed one."""
    run.wait_end()
    rows, reference = read_metrics(run.folder), read_metrics(undisturbed)
    steps = [row["step"] for row in rows]
    expected = {row["step"]: row for row in reference}
    starts = [row for row in run.records.events() if row["event"] == "start"]
    reached = starts[1]["step"] if len(starts) > 1 else AT_STEP
    recovered = [row["time"] for row in rows if row["time"] > disturbed_at and row["step"] > reached]
    return Result(
        case=case.name,
        done=case.done,
        restarts=len(starts) - 1,
        lost=sum(row["step"] - row["checkpoint"] for row in starts[1:]),
        missing=len(set(expected) - set(steps)),
        doubled=len(steps) - len(set(steps)),
        difference=max((abs(row["loss"] - expected[row["step"]]["loss"]) for row in rows), default=math.inf),
        seconds=min(recovered, default=math.inf) - disturbed_at,
        causes=tuple(row["cause"] for row in run.records.events() if row["event"] == "end"),
    )
