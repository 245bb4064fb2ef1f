"""Folders of runs and queued jobs, in the formats in which jobs/cluster.py and jobs/starts.py write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.records import Records


def start(
    job_id: int, restart: int = 0, checkpoint: int = 0, step: int = 0, nodes: str = "node[01-16]"
) -> dict[str, Any]:
    return {
        "event": "start",
        "job_id": job_id,
        "restart": restart,
        "time": 1000.0 + restart,
        "nodes": nodes,
        "checkpoint": checkpoint,
        "step": step,
    }


def end(
    job_id: int, cause: str, exit_code: int, message: str, decision: str, restart: int = 0
) -> dict[str, Any]:
    return {
        "event": "end",
        "job_id": job_id,
        "restart": restart,
        "time": 2000.0 + restart,
        "cause": cause,
        "exit_code": exit_code,
        "message": message,
        "decision": decision,
    }


def queue_job(
    folder: Path,
    name: str,
    job_id: int,
    *events: dict[str, Any],
    steps: int = 0,
    after: dict[str, str] | None = None,
    conf: str = "",
) -> Records:
    """A job that logs in `folder`; one that has `steps` trains the run there."""
    records = Records(folder / "log" / "slurm", name)
    records.folder.mkdir(parents=True, exist_ok=True)
    submission = {
        "job_id": job_id,
        "name": name,
        "site": "a800",
        "slurm_conf": conf,
        "nodes": 16 if steps else 1,
        "tasks_per_node": 8,
        "submitted": 900.0 + job_id,
        "run": str(folder) if steps else "",
        "steps": steps,
        "after": after or {},
    }
    records.job.write_text(json.dumps(submission))
    for event in events:
        records.add(event)
    return records


def make_run(folder: Path, steps: int = 800, step: int = 0, stage: str = "stage2") -> None:
    """A run folder with `step` rows of metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"values": {"stage": stage, "train.steps": steps}, "inputs": {}}))
    rows = [
        {"step": number, "loss": 1 / number, "tokens_per_second": 3600.0 + number, "step_seconds": 2.0}
        for number in range(1, step + 1)
    ]
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
