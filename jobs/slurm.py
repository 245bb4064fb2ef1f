"""Asking Slurm: one command a question, one line an error.

Slurm's own state decides, not submitit's: that one caches NODE_FAIL as final although Slurm starts the job again.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onevision.errors import OneVisionError

_SECONDS = 30.0  # after which the controller counts as unreachable
# Of a surrounding job, and what a person has set for commands typed by hand: filters, and questions before an end.
_OBEYED = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
_MARK = "\x1f"  # between fields: no name or comment contains it


class SlurmError(OneVisionError):
    """Slurm could not be asked, or refused."""


@dataclass(frozen=True)
class Queued:
    """A job in squeue. `start_time`: expected or real start as Slurm writes it, N/A if unknown."""

    job_id: int
    name: str
    state: str  # PENDING, RUNNING, COMPLETING …
    nodes: str
    reason: str
    partition: str
    start_time: str
    comment: str
    own: bool = field(default=True, kw_only=True)  # of the user who asks


@dataclass(frozen=True)
class Accounted:
    """A job in the accounting. `exit_code`: of the batch script."""

    job_id: int
    state: str  # COMPLETED, FAILED, NODE_FAIL, CANCELLED …
    exit_code: int
    nodes: str


@dataclass(frozen=True)
class Partition:
    """Limits of a partition. `minutes`: None where there is no limit; `available` nodes are not down or drained."""

    name: str
    minutes: int | None
    nodes: int
    available: int
    gpus_per_node: int


class Slurm:
    """The cluster of a slurm.conf; without one, the cluster whose commands work on this machine."""

    def __init__(self, conf: str = "") -> None:
        self.conf = conf

    def environment(self) -> dict[str, str]:
        """Environment for Slurm's commands, without variables that change what they do."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OBEYED)}
        conf = self.conf or os.environ.get("SLURM_CONF")
        return kept | ({"SLURM_CONF": conf} if conf else {})

    def ask(self, *command: str, seconds: float = _SECONDS) -> str:
        """What the command prints.

        Raises:
            SlurmError: it is not there, failed, or did not answer.
        """
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, env=self.environment(), check=False
            )
        except FileNotFoundError:
            raise SlurmError(f"{command[0]} is not on this machine: run on a login node of the cluster") from None
        except subprocess.TimeoutExpired:
            raise SlurmError(f"{command[0]} had no answer from Slurm within {seconds:.0f} s") from None
        if answer.returncode:
            lines = [line for line in answer.stderr.splitlines() if line.strip()] or ["no message"]
            raise SlurmError(f"{command[0]}: {re.sub(r'^[a-z]+: (error: )?', '', lines[-1])}")
        return answer.stdout

    def cluster_name(self) -> str | None:
        """ClusterName of a Slurm that answers; None where there is none."""
        if shutil.which("scontrol") is None or (self.conf and not Path(self.conf).exists()):
            return None
        try:
            config = self.ask("scontrol", "show", "config", seconds=5)
        except SlurmError:
            return None
        match = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
        return match[1] if match else None

    def queue(self, owners: Iterable[int] = ()) -> dict[int, Queued]:
        """The jobs of this user, and as far as Slurm shows them of `owners` (numbers of users), that wait, run or end,
        by id."""
        me = os.getuid()
        others = ",".join(str(owner) for owner in sorted(set(owners)) if owner != me and _is_user(owner))
        whose = f"--user={me},{others}" if others else "--me"
        fields = _MARK.join(("%i", "%j", "%T", "%N", "%r", "%P", "%S", "%k", "%U"))
        rows = [line.split(_MARK) for line in self.ask("squeue", whose, "-h", "-o", fields).splitlines()]
        return {
            int(row[0]): Queued(int(row[0]), *row[1:-1], own=row[-1] == str(me)) for row in rows if row[0].isdigit()
        }

    def accounting(self, job_ids: Iterable[int]) -> dict[int, Accounted]:
        """What the accounting knows of jobs, which may be nothing (no slurmdbd); of a requeued job, its last start."""
        ids = ",".join(map(str, job_ids))
        if not ids:
            return {}
        fields = "--format=JobIDRaw,State,ExitCode,NodeList"
        text = self.ask("sacct", "-X", "-n", "-P", "--delimiter", "|", fields, "-j", ids)
        found = {}
        for row in (line.split("|") for line in text.splitlines()):
            if row[0].isdigit():
                state = row[1].split()[0]  # "CANCELLED by 0"
                found[int(row[0])] = Accounted(int(row[0]), state, int(row[2].partition(":")[0]), row[3])
        return found

    def partition(self, name: str = "") -> Partition | None:
        """Limits of a partition, of the default one without a name; None where there is no such."""
        for line in self.ask("scontrol", "show", "partition", "-o").splitlines():
            values = dict(re.findall(r"(\w+)=(\S+)", line))
            if values["PartitionName"] == name or (not name and values.get("Default") == "YES"):
                return self._partition(values)
        return None

    def partitions(self) -> list[str]:
        """Names of all partitions."""
        return re.findall(r"^PartitionName=(\S+)", self.ask("scontrol", "show", "partition", "-o"), re.MULTILINE)

    def cancel(self, job_id: int, signal: str = "") -> None:
        """End a job, or send a signal to its ranks."""
        self.ask("scancel", *([f"--signal={signal}"] if signal else []), str(job_id))

    def _partition(self, values: dict[str, str]) -> Partition:
        name, limit = values["PartitionName"], values.get("MaxTime", "UNLIMITED")
        rows = [line.split() for line in self.ask("sinfo", "-h", "-N", "-p", name, "-o", "%N %t %G").splitlines()]
        gpus = [sum(map(int, re.findall(r"gpu(?::\w+)?:(\d+)", row[2]))) for row in rows]
        return Partition(
            name=name,
            minutes=None if limit == "UNLIMITED" else _minutes(limit),
            nodes=len({row[0] for row in rows}),
            available=len(usable_nodes(rows)),
            gpus_per_node=min(gpus, default=0),
        )


def usable_nodes(rows: Iterable[Sequence[str]]) -> set[str]:
    """Names of the nodes that are not down or drained, of rows that begin with name and state (sinfo's %N and %t)."""
    return {row[0] for row in rows if not re.match(r"down|drain|drng|fail|maint|unk|inval", row[1])}


def _is_user(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:  # one who has left, or of another machine: some versions of squeue refuse the whole question
        return False
    return True


def _minutes(limit: str) -> int:
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = map(int, clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minutes
