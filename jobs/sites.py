"""Site profiles: what one has to know of a cluster to run jobs there, a YAML file a site in `sbatch/clusters/`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jobs.slurm import Slurm
from onevision.errors import InputError
from onevision.recipe import known_keys
from onevision.yaml_text import first_line, read_yaml

CLUSTERS = Path(__file__).parents[1] / "sbatch" / "clusters"
HERE = "here"
SCHEDULERS = ("slurm", "none")
_TIME = re.compile(r"(?:(?P<days>[0-9]{1,6})-)?(?P<hours>[0-9]{1,6}):(?P<minutes>[0-5][0-9]):(?P<seconds>[0-5][0-9])")


@dataclass(frozen=True)
class Health:
    """What a node must have before a job starts on it; 0 leaves a check out."""

    gpu_devices: str = "/dev/nvidia[0-9]*"  # glob that is counted where nvidia-smi is missing; {node}: the node's name
    infiniband_ports: int = 0  # active ports a node
    nvlinks: int = 0  # active links a GPU
    allreduce_gbps: float = 0  # GB/s, least bus bandwidth of an all-reduce over the job's ranks
    allreduce_mb: int = 256  # its size
    scratch_gb: float = 0  # free space in `scratch`
    shared_memory_gb: float = 0  # size of /dev/shm


@dataclass(frozen=True)
class Site:
    """A cluster, or this machine. Sizes are those of one node unless they say otherwise."""

    name: str = ""  # stem of the file
    scheduler: str = "slurm"  # slurm, none
    cluster_name: str = ""  # ClusterName of slurm.conf, by which the site is recognised
    slurm_conf: str = ""  # path of slurm.conf, where Slurm's commands do not find it by themselves
    partition: str = ""  # of jobs that train; empty: Slurm's default
    cpu_partition: str = ""  # of jobs without a GPU; empty: `partition`
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    time_limit: str = "1-00:00:00"  # D-HH:MM:SS; a job that reaches it saves, is queued again and goes on
    exclusive: bool = True  # training jobs take whole nodes
    gpu_type: str = ""  # A800, H100
    gpus_per_node: int = 0
    gpu_memory_gb: float = 0  # GB of 1e9 bytes; 0: ranks run on the CPU
    fp8: bool = False  # the chip has FP8 units
    tasks_per_node: int = 0  # ranks a node; 0: one a GPU
    cpus_per_task: int = 1
    memory_gb: float = 0  # of a training job; 0: all of the node's
    python: str = ".venv/bin/python"
    container: str = ""  # Apptainer image that `python` runs in
    container_binds: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)  # `module load` in the batch script
    nccl: str = ""  # file of NAME=value  # reason
    network_interface: str = ""  # for NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME
    scratch: str = "/tmp"  # node-local folder
    cpu_bind: str = ""  # srun --cpu-bind
    mpi: str = "pmi2"  # srun --mpi for the ranks of data steps: what the MPI library under mpi4py speaks
    signal_seconds: int = 300  # before the time limit, to finish a step and save
    max_restarts: int = 3  # crashes without a new checkpoint in between, after which a job is not started again
    health: Health = field(default_factory=Health)
    sbatch: dict[str, str] = field(default_factory=dict)  # any further option of sbatch
    srun: list[str] = field(default_factory=list)  # any further option of srun

    @property
    def slurm(self) -> Slurm:
        """The site's Slurm."""
        return Slurm(self.slurm_conf)

    @property
    def ranks_per_node(self) -> int:
        """Ranks of a training job on a node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def minutes(self) -> int:
        """`time_limit` in minutes."""
        return time_minutes(self.time_limit)

    def ranks(self, nodes: int) -> int:
        """Ranks of a training job on `nodes` nodes."""
        return nodes * self.ranks_per_node


def time_minutes(text: str) -> int:
    """Minutes of Slurm's D-HH:MM:SS or HH:MM:SS, rounded up.

    Raises:
        InputError: it is written in another way.
    """
    match = _TIME.fullmatch(text)
    if not match:
        raise InputError(f"time {text!r} is not of the form D-HH:MM:SS, such as 1-00:00:00 or 04:00:00")
    days, hours, minutes, seconds = (int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def load_site(path: Path) -> Site:
    """Read a profile.

    Raises:
        InputError: unknown key (with the nearest known one), impossible value, missing or unreadable file.
    """
    tree = read_yaml(path, "site profile")
    if not isinstance(tree, DictConfig):
        raise InputError(f"site profile {path} is not a mapping of keys to values")
    _check_keys(OmegaConf.to_container(tree), path)
    try:
        site = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Site), tree))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise InputError(f"site profile {path}: {key + ': ' if key else ''}{first_line(error)}") from None
    assert isinstance(site, Site)
    problems = site_problems(site)
    if problems:
        raise InputError(f"site profile {path}: " + "; ".join(problems))
    return replace(site, name=path.stem)


def site_names() -> list[str]:
    """Names of the profiles there are."""
    return sorted(path.stem for path in CLUSTERS.glob("*.yaml"))


def site_problems(site: Site) -> list[str]:
    """Everything wrong with the values of a profile."""
    problems = []
    if site.scheduler not in SCHEDULERS:
        problems.append(f"scheduler={site.scheduler!r} is not one of {', '.join(SCHEDULERS)}")
    if not _TIME.fullmatch(site.time_limit):
        problems.append(f"time_limit={site.time_limit!r} is not of the form D-HH:MM:SS")
    for name in ("gpus_per_node", "gpu_memory_gb", "tasks_per_node", "memory_gb"):
        if getattr(site, name) < 0:
            problems.append(f"{name}={getattr(site, name)} must be at least 0")
    for name in ("cpus_per_task", "max_restarts", "signal_seconds"):
        if getattr(site, name) < 1:
            problems.append(f"{name}={getattr(site, name)} must be at least 1")
    if site.container and not Path(site.container).is_absolute():
        problems.append(f"container={site.container!r} must be an absolute path, which all nodes see")
    return problems


def find_site(name: str = "") -> Site:
    """The profile called `name` (or the file of that path); without a name, that of the Slurm cluster whose commands
    work on this machine, else this machine itself.

    Raises:
        InputError: no such profile; or there is a Slurm cluster that no profile knows.
    """
    if name:
        if name.endswith((".yaml", ".yml")):
            return load_site(Path(name))
        if name not in site_names():
            known = ", ".join(site_names())
            raise InputError(f"site profile {CLUSTERS}/{name}.yaml does not exist; there are: {known}")
        return load_site(CLUSTERS / f"{name}.yaml")
    sites = [load_site(path) for path in sorted(CLUSTERS.glob("*.yaml"))]
    default = Slurm().cluster_name()
    for site in sites:
        if site.scheduler == "slurm" and site.cluster_name:
            found = site.slurm.cluster_name() if site.slurm_conf else default
            if found == site.cluster_name:
                return site
    if default:
        raise InputError(
            f"no profile in {CLUSTERS} has cluster_name: {default}, which is the name of this Slurm cluster: copy the "
            f"nearest of {', '.join(site_names())} and set it there, or choose one with SITE=name (SITE=here: no Slurm)"
        )
    return load_site(CLUSTERS / f"{HERE}.yaml")


def _check_keys(tree: Any, path: Path) -> None:
    known = known_keys(Site)
    free = {"sbatch"}  # its keys are Slurm's
    for key, value in tree.items():
        names = [key] if key in free or not isinstance(value, dict) else [key, *(f"{key}.{name}" for name in value)]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
                raise InputError(f"site profile {path}: unknown key {name!r}; the nearest is {near[0]!r}")
