"""Where a job runs: on this machine at once, or in the queue of a Slurm cluster. All jobs start here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.cluster import Work, queue
from jobs.here import launch, visible_gpus
from jobs.numbers import whole
from jobs.shared import by_mpiexec
from jobs.sites import Site, find_site, time_minutes
from onevision.errors import InputError

SETTINGS = ("site", "nodes", "time", "processes")  # key=value settings that every job understands


@dataclass(frozen=True)
class Place:
    """A site and how much of it. `minutes` 0: the site's time limit; `processes` 0: one a GPU, or one."""

    site: Site
    nodes: int = 1
    minutes: int = 0
    processes: int = 0

    @property
    def here(self) -> bool:
        """Whether jobs run on this machine at once."""
        return self.site.scheduler == "none"

    @property
    def ranks(self) -> int:
        """Ranks of a training job."""
        return (self.processes or max(1, len(visible_gpus()))) if self.here else self.site.ranks(self.nodes)


def place_of(own: Mapping[str, str]) -> Place:
    """The place that the settings `site`, `nodes`, `time` and `processes` name.

    Raises:
        InputError: an unknown site, or a value that is not of its kind.
    """
    site = find_site(own.get("site", ""))
    minutes = time_minutes(own["time"]) if own.get("time") else 0
    place = Place(site, _number(own, "nodes") or 1, minutes, _number(own, "processes"))
    if place.here and place.nodes > 1:
        print(f"no Slurm here: running on this machine, without nodes={place.nodes}", flush=True)
    if place.processes and not place.here:
        raise InputError(f"processes={place.processes} is for a machine without Slurm; {site.name} has nodes=N")
    return place


def start(work: Work, place: Place, show: Callable[[Any], None] = lambda value: None) -> int:
    """Run the work here to its end and `show` its value, or queue it and say so; returns the exit code.

    Raises:
        OneVisionError: as `jobs.here.launch` and `jobs.cluster.queue`.
    """
    if place.here:
        call, args = work.call, work.args
        if work.mpi and work.ranks > 1:
            call, args = by_mpiexec, (work.ranks, *args)
        processes = place.ranks if work.needs == "nodes" else 1
        show(launch(work.name, call, *args, log_folder=work.log_folder, processes=processes))
        return 0
    work = replace(work, minutes=place.minutes)
    job_id = queue(work, place.site)
    print(queued_line(work, job_id, place.site), flush=True)
    return 0


def queued_line(work: Work, job_id: int, site: Site) -> str:
    """What a person wants to know of a job that was queued."""
    if work.needs == "nodes":
        size = f"{work.nodes} nodes x {site.ranks_per_node} ranks"
    else:
        size = f"{work.ranks} ranks" if work.ranks > 1 else "one node"
    before = ", ".join(f"{name} (job {number})" for number, name in work.after.items())
    after = f", after {before}" if before else ""
    return f"{work.name}: queued as job {job_id} on {site.name}, {size}{after}; log {_short(work.records.log(job_id))}"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _number(own: Mapping[str, str], key: str) -> int:
    number = whole(own.get(key) or "0")
    if number is None:
        raise InputError(f"{key}={own[key]} is not a number")
    return number
