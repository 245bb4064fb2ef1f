"""The files of a queued job: its submission, its starts, its ranks' last words. They stand in `<log folder>/slurm`."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.files import read_json, write_json


@dataclass(frozen=True)
class Records:
    """Names of the files of job `name` in `folder`."""

    folder: Path
    name: str

    @property
    def job(self) -> Path:
        """The last submission."""
        return self.folder / f"{self.name}.job.json"

    @property
    def starts(self) -> Path:
        """One line an event: a start, or its end."""
        return self.folder / f"{self.name}.starts.jsonl"

    @property
    def ranks(self) -> Path:
        """Folder of the records of ranks that ended badly in the last start."""
        return self.folder / f"{self.name}.ranks"

    @property
    def health(self) -> Path:
        """Folder of what the nodes of the last start found of themselves."""
        return self.folder / f"{self.name}.health"

    @property
    def bad_nodes(self) -> Path:
        """Nodes that the next starts leave out, with the reason."""
        return self.folder / f"{self.name}.bad_nodes.json"

    def owners(self) -> list[int]:
        """The number of the user who queued the last submission, which is the only one to have written its file; empty
        without one."""
        return [self.job.stat().st_uid] if self.job.exists() else []

    def excluded(self) -> dict[str, Any]:
        """The bad nodes there are."""
        return read_json(self.bad_nodes) if self.bad_nodes.exists() else {}

    def rank(self, rank: int) -> Path:
        """Record of a rank that ended badly."""
        return self.ranks / f"{rank}.json"

    def log(self, job_id: int, rank: int = 0) -> Path:
        """Log of a rank, under the name that submitit gives it; that of rank 0 is also the batch script's."""
        return self.folder / f"{job_id}_{rank}_log.out"

    def events(self) -> list[dict[str, Any]]:
        """The rows of `starts`; a line that was cut off by a crash is left out."""
        rows = []
        for line in self.starts.read_text(encoding="utf-8").splitlines() if self.starts.exists() else []:
            with suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Append an event."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.starts.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def metrics_ns(run: Path | None) -> int:
    """When metrics.jsonl was last written, by the file system's clock; 0 without it. Only whether it is another one
    says something: that clock may be set."""
    path = (run or Path()) / "metrics.jsonl"
    return path.stat().st_mtime_ns if run is not None and path.exists() else 0


def leave_record(path: Path, exit_code: int, message: str, step: int = 0) -> None:
    """Say how a rank ended. A full disk must not hide the exit code."""
    row = {"exit_code": exit_code, "message": message, "step": step, "time": time.time(), "node": socket.gethostname()}
    with suppress(Exception):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, row | {"rank": int(os.environ.get("RANK", 0))})
