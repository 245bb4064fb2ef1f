"""The one executor builder: a site profile and a piece of work become a submitit executor, and its batch script.

    sbatch -> batch script on the first node:
        python -m jobs.starts begin      may this job start once more?
        srun, one task a node            node health; an unfit node is left out and the job starts again
        srun, one task a rank            the work itself (jobs/task.py)
        python -m jobs.starts end        done, again, or stop: scontrol requeue, or the exit code
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal

import submitit

from jobs.health import arguments
from jobs.nccl import read_nccl
from jobs.records import Records
from jobs.sites import Site
from jobs.slurm import SlurmError
from jobs.task import Task
from onevision.errors import InputError
from onevision.files import read_json, write_json

ROOT = Path(__file__).parents[1]
_MANY = 1_000_000  # starts: submitit counts some signals as time-outs; jobs/starts.py decides instead


@dataclass(frozen=True)
class Work:
    """A call to be queued. `needs`: "cpu" a process, "gpu" a process with a GPU, "ranks" as many MPI `ranks` evenly
    over the nodes, "gpu_ranks" the same with a GPU each, as far as a node has them, "nodes" a rank a GPU of all nodes.
    """

    name: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    log_folder: Path
    needs: Literal["cpu", "gpu", "ranks", "gpu_ranks", "nodes"] = "cpu"
    nodes: int = 1
    ranks: int = 1  # with needs="ranks" or "gpu_ranks"
    run: Path | None = None  # run folder whose checkpoints are the progress of the work
    steps: int = 0
    minutes: int = 0  # time limit; 0: the site's
    after: dict[int, str] = field(default_factory=dict)  # jobs that must have ended well before, by id

    @property
    def mpi(self) -> bool:
        """Whether MPI joins its processes."""
        return self.needs in ("ranks", "gpu_ranks")

    @property
    def gpu(self) -> bool:
        """Whether it wants GPUs."""
        return self.needs in ("gpu", "gpu_ranks", "nodes")

    @property
    def records(self) -> Records:
        """Files of the queued job."""
        return Records(self.log_folder.absolute() / "slurm", self.name)


def queue(work: Work, site: Site) -> int:
    """Queue the work on the site's Slurm; returns the job's number.

    Raises:
        InputError: a job of that name in that folder waits or runs already.
        SlurmError: Slurm refused.
    """
    records = work.records
    refuse_second(records, site)
    records.folder.mkdir(parents=True, exist_ok=True)
    executor = slurm_executor(work, site)
    with _environment(site):
        try:
            job = executor.submit(Task(records, work.call, work.args))
        except submitit.core.utils.FailedJobError as error:
            lines = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
            raise SlurmError(" ".join(lines) or str(error).splitlines()[0]) from None
    job_id = int(job.job_id)
    write_json(
        records.job,
        {
            "job_id": job_id,
            "name": work.name,
            "site": site.name,
            "slurm_conf": site.slurm_conf,
            "nodes": work.nodes,
            "tasks_per_node": _tasks(work, site),
            "submitted": time.time(),
            "run": str(work.run or ""),
            "steps": work.steps,
            "after": {str(number): name for number, name in work.after.items()},
        },
    )
    return job_id


def slurm_problems(work: Work, site: Site) -> list[str]:
    """What Slurm itself has against the job: `sbatch --test-only`, which queues nothing."""
    with NamedTemporaryFile("w", suffix=".sbatch") as script:
        script.write(script_text(work, site))
        script.flush()
        try:
            site.slurm.ask("sbatch", "--test-only", script.name)
        except SlurmError as error:
            return [f"Slurm would refuse the job: {error}"]
    return []


def refuse_second(records: Records, site: Site) -> None:
    """Raise InputError when the last submission is still in the queue."""
    if records.job.exists():
        former = read_json(records.job)["job_id"]
        queued = site.slurm.queue(records.owners()).get(former)
        if queued is not None:
            raise InputError(
                f"{records.name} is in the queue already as job {former} ({queued.state.lower()}): "
                "wait for it (make status), or end it (make cancel)"
            )


def slurm_executor(work: Work, site: Site) -> submitit.SlurmExecutor:
    """The submitit executor of a piece of work."""
    with _environment(site):
        executor = submitit.SlurmExecutor(
            work.records.folder, max_num_timeout=_MANY, python=python_command(site, gpu=work.gpu)
        )
    executor.update_parameters(**parameters(work, site))
    return executor


def script_text(work: Work, site: Site) -> str:
    """The batch script as sbatch gets it."""
    executor = slurm_executor(work, site)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def parameters(work: Work, site: Site) -> dict[str, Any]:
    """submitit's parameters: what is asked of Slurm, and the lines of the batch script before and after srun."""
    training = work.needs == "nodes"
    wanted = {"gpu": 1, "gpu_ranks": work.ranks // work.nodes, "nodes": site.gpus_per_node}
    gpus = min(wanted.get(work.needs, 0), site.gpus_per_node)
    partition = site.partition if work.gpu else site.cpu_partition or site.partition
    further: dict[str, Any] = {
        "requeue": True,
        "distribution": "block",  # neighbouring ranks on one node
        "kill-on-invalid-dep": "yes",
    }
    if site.reservation:
        further["reservation"] = site.reservation
    if training and not site.memory_gb and site.exclusive:
        further["mem"] = 0  # all of the node's
    excluded = ",".join(sorted(work.records.excluded()))
    asked: dict[str, Any] = {
        "job_name": _job_name(work),
        "comment": str(work.run or work.log_folder.parent),
        "partition": partition or None,
        "account": site.account or None,
        "qos": site.qos or None,
        "constraint": site.constraint or None,
        "exclude": excluded if training and excluded else None,
        "exclusive": True if training and site.exclusive else None,
        "time": work.minutes or site.minutes,
        "nodes": work.nodes,
        "ntasks_per_node": _tasks(work, site),
        "cpus_per_task": _cpus(work, site),
        "gpus_per_node": gpus or None,
        "mem": f"{site.memory_gb:g}G" if training and site.memory_gb else None,
        "signal_delay_s": site.signal_seconds,
        "dependency": "afterok:" + ":".join(map(str, work.after)) if work.after else None,
        "stderr_to_stdout": True,
        "setup": setup_lines(work, site),
        "srun_args": srun_options(site, _cpus(work, site), site.mpi if work.mpi else "none"),
        "teardown": teardown_lines(work, site),
        "additional_parameters": further | dict(site.sbatch),
    }
    return {name: value for name, value in asked.items() if value is not None} | {"wckey": None}


def srun_options(site: Site, cpus_per_task: int, mpi: str = "none") -> list[str]:
    """Options of the srun that starts the ranks. srun does not take --cpus-per-task from the job: it must be told."""
    options = [f"--cpus-per-task={cpus_per_task}", "--distribution=block", "--kill-on-bad-exit=1", f"--mpi={mpi}"]
    if site.cpu_bind:
        options.append(f"--cpu-bind={site.cpu_bind}")
    return [*options, *site.srun]


def setup_lines(work: Work, site: Site) -> list[str]:
    """Lines of the batch script before srun."""
    python = python_command(site, gpu=False)
    records = _quoted(work.records)
    lines = [f"module load {' '.join(site.modules)}"] if site.modules else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment(site).items()]
    lines += [
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))",
        "export SUBMITIT_LOG_LEVEL=WARNING",
        "trap : TERM  # the ranks hear it too; how they end decides below",
        "again() {  # queue this job again, without the nodes $1 (-: none any more; empty: as before)",
        "    trap '' TERM  # Slurm ends this script when it queues the job again",
        "    for _ in $(seq 60); do",
        '        case $(squeue -h -j "$SLURM_JOB_ID" -o %T) in',
        '        RUNNING) scontrol requeue "$SLURM_JOB_ID" &&',
        '            { [ -z "$1" ] || scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=${1#-}"; exit 75; } ;;',
        "        ?*) exit 75 ;;  # cancelled, or queued again already",
        "        esac",
        "        sleep 5  # the controller does not answer",
        "    done",
        "    exit 75",
        "}",
        f"{python} -m jobs.starts begin {records} {_run(work)}|| exit $?",
    ]
    if work.needs == "nodes":
        lines += health_lines(work, site)
    return [f"cd {shlex.quote(str(Path.cwd()))} || exit 2", *lines]


def health_lines(work: Work, site: Site) -> list[str]:
    """Lines of the batch script that look at the nodes."""
    python = python_command(site, gpu=True)
    records = work.records
    folder = shlex.quote(str(records.health))
    one_each = 'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --mpi=none'
    settings = shlex.join(arguments(site))
    lines = [f"{one_each} {python} -m jobs.health node {folder} {settings}"]
    if site.health.allreduce_gbps:
        options = " ".join(srun_options(site, site.cpus_per_task))
        lines.append(f"srun {options} {python} -m jobs.health allreduce {folder} {settings}")
    return [
        *lines,
        f'unfit=$({python} -m jobs.starts fit {_quoted(records)} '
        '"$(scontrol show hostnames "$SLURM_JOB_NODELIST")")',
        'code=$?; if [ $code = 75 ]; then again "$unfit"; elif [ $code != 0 ]; then exit $code; fi',
    ]


def teardown_lines(work: Work, site: Site) -> list[str]:
    """Lines of the batch script after srun, whose exit code they find in `$?`."""
    python = python_command(site, gpu=False)
    states = '"$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o "%N %t")"'
    more = f"{site.max_restarts} {states} {_run(work)}".rstrip()
    return [
        f"unfit=$({python} -m jobs.starts end {_quoted(work.records)} $? {more})",
        'code=$?; if [ $code = 75 ]; then again "$unfit"; fi',
        "exit $code",
    ]


def environment(site: Site) -> dict[str, str]:
    """Variables of the batch script: they choose ways and interfaces of communication, never a result."""
    values = read_nccl(ROOT / site.nccl) if site.nccl else {}
    if site.network_interface:
        values |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), site.network_interface)
    return values


def python_command(site: Site, *, gpu: bool) -> str:
    """The command that runs Python on a node."""
    if not site.container:
        return shlex.quote(str(ROOT / site.python))
    binds = [option for bind in [str(Path.cwd()), *site.container_binds] for option in ("--bind", bind)]
    command = ["apptainer", "exec", *(["--nv"] if gpu else []), *binds, site.container, "python"]
    return shlex.join(command)


def _tasks(work: Work, site: Site) -> int:
    return -(-work.ranks // work.nodes) if work.mpi else {"nodes": site.ranks_per_node}.get(work.needs, 1)


def _cpus(work: Work, site: Site) -> int:
    return 1 if work.mpi and work.ranks > 1 else site.cpus_per_task


def _job_name(work: Work) -> str:
    parent = (work.run or work.log_folder).parent.name
    return f"{parent}.{work.name}" if parent not in ("", "runs") else work.name


def _quoted(records: Records) -> str:
    return f"{shlex.quote(str(records.folder))} {shlex.quote(records.name)}"


def _run(work: Work) -> str:
    return f"{shlex.quote(str(work.run))} " if work.run is not None else ""


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def _environment(site: Site) -> Iterator[None]:
    """os.environ as Slurm's commands should see it; submitit hands it on. Threads take turns: it is the process's."""
    with _ONE_AT_A_TIME:
        former, wanted = dict(os.environ), site.slurm.environment()
        _change_environment(former, wanted)
        try:
            yield
        finally:
            _change_environment(wanted, former)


def _change_environment(before: dict[str, str], after: dict[str, str]) -> None:
    """Set and remove what differs; what is the same in both is there all the time, for other threads' commands."""
    for name in before.keys() - after.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in after.items() if before.get(name) != value})
