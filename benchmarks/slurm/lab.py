"""A local Slurm cluster (sbatch/localcluster) in the hands of a program: nodes die, the controller restarts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from jobs.sites import CLUSTERS, Site, load_site
from jobs.slurm import Slurm
from onevision.errors import OneVisionError

SCRIPT = Path(__file__).parents[2] / "sbatch" / "localcluster" / "cluster.sh"
STATE = Path("/var/tmp/onevision-slurm")
DEFAULT = "onevision"
_SECONDS = 180


class LabError(OneVisionError):
    """The local cluster did not do what it was asked."""


class Lab:
    """The local cluster called `name`."""

    def __init__(self, name: str = DEFAULT) -> None:
        self.name = name
        self.conf = STATE / name / "etc" / "slurm.conf"
        self.slurm = Slurm(str(self.conf))

    def __call__(self, *command: str) -> str:
        """Run a command of cluster.sh on this cluster; what it printed.

        Raises:
            LabError: with the last line of what it said.
        """
        arguments = ["bash", str(SCRIPT), "--name", self.name, *command]
        try:
            answer = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise LabError(f"{SCRIPT.name} {' '.join(command)}: no end within {_SECONDS} s") from None
        if answer.returncode:
            lines = (answer.stderr or answer.stdout).strip().splitlines() or ["no message"]
            raise LabError(f"{SCRIPT.name} {' '.join(command)}: {lines[-1]}")
        return answer.stdout

    def site_file(self, folder: Path) -> Path:
        """A profile of this cluster, written into `folder`."""
        text = (CLUSTERS / "localcluster.yaml").read_text(encoding="utf-8")
        path = folder / f"{self.name}.yaml"
        path.write_text(text.replace(f"{STATE}/{DEFAULT}/", f"{STATE}/{self.name}/"), encoding="utf-8")
        return path

    def site(self, folder: Path) -> Site:
        """The profile itself."""
        return load_site(self.site_file(folder))

    def node_folder(self, node: str) -> Path:
        """Folder with the device files of a node."""
        return STATE / self.name / "nodes" / node

    def rank_process(self, job_id: int, rank: int) -> int:
        """Process id of a rank of a running job, seen from this machine.

        Raises:
            LabError: it does not run.
        """
        wanted = {f"SLURM_JOB_ID={job_id}", f"SLURM_PROCID={rank}"}
        for pid, words, environment in _processes():
            if "submitit.core._submit" in words and words[0].endswith("python") and wanted <= environment:
                return pid
        raise LabError(f"rank {rank} of job {job_id} does not run")

    def signal_rank(self, job_id: int, rank: int, signum: signal.Signals) -> None:
        """Send a signal to one rank, past Slurm."""
        os.kill(self.rank_process(job_id, rank), signum)


def _processes() -> Iterator[tuple[int, list[str], set[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it has ended
            yield int(folder.name), words, set(environment)
