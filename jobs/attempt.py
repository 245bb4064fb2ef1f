"""The files of one start of a job: `<name>-<time>.log` for people, and beside it a hidden folder.

The hidden folder `.<name>-<time>` holds submitit's own files and who takes part: `launcher.json`, `<rank>.json`.
It goes when the job ends. One that is still there belongs to a job that runs, or to a launcher that died.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

import psutil

from onevision.errors import InputError
from onevision.files import write_json

_STAMP = f"{'[0-9]' * 8}-{'[0-9]' * 6}"


class Attempt:
    """Names of the files of one start."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def log(self, rank: int = 0) -> Path:
        """The log of a rank; a link into the hidden folder while the job runs."""
        return self.work.with_name(f"{self.work.name[1:]}{f'.rank{rank}' if rank else ''}.log")

    def identity(self, who: int | str) -> Path:
        """The file in which a rank, or "launcher", says which process it is."""
        return self.work / f"{who}.json"

    def record(self, rank: int) -> Path:
        """What a rank leaves that ends itself without an outcome."""
        return self.work / f"{rank}.ended"

    def show_log(self, rank: int, output: Path) -> None:
        """Make submitit's output file reachable under the log's name."""
        if not self.log(rank).is_symlink() and output.exists():
            self.log(rank).symlink_to(output.relative_to(self.work.parent))

    def settle(self) -> None:
        """Keep the logs, remove the rest."""
        for output in self.work.glob("*_*_log.out"):  # <job>_<rank>_log.out
            output.replace(self.log(int(output.name.split("_")[1])))
        shutil.rmtree(self.work, ignore_errors=True)


def new_attempt(log_folder: Path, name: str) -> Attempt:
    """Make the folder of a new start, after tidying up what launchers that died have left.

    Raises:
        InputError: the job of an earlier start still runs.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    file_name = re.sub(r"[^\w.]+", "-", name)
    for work in sorted(log_folder.glob(f".{file_name}-{'[0-9]' * 8}-*")):
        _settle_former(name, Attempt(work))
    # The newest start has the newest name, also when the clock was set back since.
    stamps = [path.name[len(file_name) + 1 :][:15] for path in log_folder.glob(f"{file_name}-{_STAMP}*.log")]
    stamp = max([time.strftime("%Y%m%d-%H%M%S"), *stamps])
    number = 1
    while True:
        attempt = Attempt(log_folder / f".{file_name}-{stamp}{f'-{number}' if number > 1 else ''}")
        number += 1
        if attempt.log().exists():
            continue
        try:
            attempt.work.mkdir()
        except FileExistsError:
            continue
        write_identity(attempt.identity("launcher"))
        return attempt


def write_identity(path: Path) -> None:
    """Say which process this is."""
    write_json(path, {"pid": os.getpid(), "born": born(os.getpid()), "host": socket.gethostname()})


def born(pid: int) -> str:
    """When a process began, so that no setting of the clock changes it: ticks of the kernel since which boot.

    Raises:
        FileNotFoundError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{fields[19]} ticks after boot {boot}"


def process_of(identity: Path) -> tuple[int, psutil.Process | None]:
    """Process id of who wrote the file, and the process; None when it is gone."""
    known = json.loads(identity.read_text(encoding="utf-8"))
    try:
        return known["pid"], psutil.Process(known["pid"]) if born(known["pid"]) == known.get("born") else None
    except (psutil.NoSuchProcess, FileNotFoundError):
        return known["pid"], None


def runs(process: psutil.Process | None) -> bool:
    """Whether it is there and not merely waiting to be reaped."""
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _settle_former(name: str, former: Attempt) -> None:
    identities = sorted(former.work.glob("*.json"))
    hosts = {json.loads(path.read_text(encoding="utf-8"))["host"] for path in identities}
    if hosts != {socket.gethostname()}:  # of another machine, or not complete yet: not ours to judge
        return
    for pid, process in map(process_of, identities):
        if runs(process):
            raise InputError(
                f"job {name} still runs as process {pid} (log {former.log()}): wait for it, "
                f"or stop it with: kill {pid}"
            )
    former.settle()
