"""What the batch script asks at the start and at the end of a job: go on, without which nodes, again or not.

    python -m jobs.starts begin FOLDER NAME [RUN]
        exit code 0: go on
    python -m jobs.starts fit FOLDER NAME NODES
        0: go on; 75: again, without the nodes it prints
    python -m jobs.starts end FOLDER NAME CODE MAX_RESTARTS STATES [RUN]
        0: done; 75: again, without the nodes it prints ("-": none any more; nothing: as before); else: stop with it

CODE is srun's, STATES names and states of the partition's nodes, a line each (in a container Slurm cannot be asked).
Slurm counts the starts of a job, and this file remembers how each ended. A start that ended by itself (crash, hang,
node failure) is tried again as long as there is a new checkpoint between; what another start would only repeat is not.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from jobs.health import verdict
from jobs.records import Records, metrics_ns
from jobs.slurm import usable_nodes
from onevision.errors import DataError, Diverged, Hung, InputError, OneVisionError, StorageError, Suspect
from onevision.files import read_json, write_json
from onevision.training.bad_steps import read_bad_steps
from onevision.training.checkpoint_files import checkpoint_steps

AGAIN = 75
_PERMANENT = (Diverged.exit_code, InputError.exit_code, DataError.exit_code, StorageError.exit_code, 130)
_SIGNALLED = ("User defined signal 1", "User defined signal 2", "Terminated")  # before the rank could listen
_COUNTED = ("crashed", "hung", "lost", "suspect")  # causes that must not repeat without a new checkpoint


def begin(records: Records, run: Path | None) -> int:
    """Note that a start begins, and from where."""
    job_id, restart = _job()
    events = records.events()
    if events and events[-1]["event"] == "start":
        last = events[-1]
        records.add(
            {
                "event": "end",
                "job_id": last["job_id"],
                "restart": last["restart"],
                "time": time.time(),
                "cause": "lost",
                "exit_code": 1,
                "message": f"the start on {last['nodes']} ended without a word: a node failed, or Slurm ended the job",
                "decision": "requeue" if last["job_id"] == job_id else "stop",
            }
        )
    for leftover in [*records.ranks.glob("*.json"), *records.health.glob("*.json")]:
        leftover.unlink()
    if not records.job.exists() or read_json(records.job)["job_id"] != job_id:  # queued without the suite
        write_json(records.job, _submission(records, job_id, run))
    nodes = os.environ["SLURM_JOB_NODELIST"]
    checkpoint, step = progress(run)
    log = records.log(job_id)
    records.add(
        {
            "event": "start",
            "job_id": job_id,
            "restart": restart,
            "time": time.time(),
            "nodes": nodes,
            "checkpoint": checkpoint,
            "step": step,
            "log_bytes": log.stat().st_size if log.exists() else 0,
            "metrics_ns": metrics_ns(run),
        }
    )
    done = f", from the checkpoint of step {checkpoint}" if checkpoint else ""
    print(f"{records.name}: start {restart + 1} of job {job_id} on {nodes}{done}", flush=True)
    return 0


def fit(records: Records, nodes: list[str]) -> int:
    """Judge what the nodes found of themselves; prints those to leave out, old ones included."""
    try:
        bad = verdict(records.health, nodes)
    except OneVisionError as error:  # all nodes alike: not theirs
        _end(records, "failed", error.exit_code, str(error), "stop")
        return error.exit_code
    if not bad:
        return 0
    reasons = "; ".join(f"{node}: {reason}" for node, reason in bad.items())
    _leave_out(records, {node: {"reason": reason} for node, reason in bad.items()})
    return _again(records, "unhealthy", f"not fit, left out from now on: {reasons}")


def end(records: Records, code: int, max_restarts: int, run: Path | None, states: str = "") -> int:
    """Decide what follows srun's exit `code`; `states` are empty where Slurm did not answer."""
    _take_back(records, run)
    if code == 0:
        return _end(records, "finished", 0, "", "done")
    cause, exit_code, message = judge(records, code)
    if cause == "interrupted":
        return _again(records, cause, message)
    if cause == "failed":
        return _end(records, cause, exit_code, message, "stop")
    crashes = 1 + former_crashes(records.events(), _job()[0], progress(run)[0])
    if crashes < max_restarts:
        text = f"{message} (start {crashes} of at most {max_restarts} without a new checkpoint)"
        if cause == "suspect":
            text += _leave_out_suspects(records, run, states)
        return _again(records, cause, text)
    text = f"not started again: {crashes} starts ended without a new checkpoint; the last one: {message}"
    return _end(records, cause, exit_code, text, "stop")


def judge(records: Records, code: int) -> tuple[str, int, str]:
    """Cause, exit code and message of a bad end, of what the ranks have left and of what srun saw.

    After a crash srun ends the other ranks, and they answer that like any other signal: the first end tells the cause.
    """
    ended = sorted((read_json(path) for path in records.ranks.glob("*.json")), key=lambda row: row["time"])
    for known, cause in (((*_PERMANENT,), "failed"), ((Hung.exit_code,), "hung"), ((Suspect.exit_code,), "suspect")):
        for row in ended:
            if row["exit_code"] in known:
                return cause, row["exit_code"], row["message"]
    where, what = _first_end(records)
    if what in _SIGNALLED:
        return "interrupted", AGAIN, f"{where}: {what} while it started"
    exited = re.fullmatch(r"Exited with exit code (\d+)", what)
    if what and not exited:
        return "crashed", code, f"{where}: {what}"
    first = int(exited[1]) if exited else code
    for row in ended:
        if row["exit_code"] == first:
            if first == AGAIN:
                return "interrupted", AGAIN, row["message"]
            return "crashed", first, f"rank {row['rank']} on {row['node']}: {row['message']}"
    return "crashed", code, f"srun ended with exit code {code}; see {records.log(_job()[0])}"


def former_crashes(events: list[dict[str, Any]], job_id: int, checkpoint: int) -> int:
    """Ends of this job in a row, the newest first, that were crashes and began at the checkpoint there is now."""
    count = 0
    starts = {(row["job_id"], row["restart"]): row for row in events if row["event"] == "start"}
    for row in reversed([row for row in events if row["event"] == "end"]):
        start = starts.get((row["job_id"], row["restart"]))
        if row["job_id"] != job_id or start is None or start["checkpoint"] != checkpoint:
            break
        if row["cause"] in _COUNTED:
            count += 1
        elif row["cause"] == "interrupted":
            break
    return count


def progress(run: Path | None) -> tuple[int, int]:
    """Step of the newest checkpoint of a run folder, and of the last row of its metrics; 0 where there is none."""
    if run is None:
        return 0, 0
    steps = checkpoint_steps(run)
    metrics = run / "metrics.jsonl"
    last = 0
    if metrics.exists():
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 65_536))
            found = re.findall(rb'"step": (\d+)', file.read())
        last = int(found[-1]) if found else 0
    return max(steps, default=0), last


def _suspects(run: Path | None) -> dict[str, dict[str, Any]]:
    """The nodes that computed what another one is to check, where it is known which, with the reason and the step."""
    rows = [row for row in read_bad_steps(run) if row["action"] == "elsewhere"] if run is not None else []
    if not rows:
        return {}
    last = max(rows, key=lambda row: row["time"])
    reason = f"computed step {last['step']} with {last['what']} {last['value']}, to be checked"
    # A host's name may have a domain, which Slurm's name of the node has not.
    return {node.partition(".")[0]: {"reason": reason, "step": last["step"]} for node in last["nodes"]}


def _leave_out_suspects(records: Records, run: Path | None, states: str) -> str:
    """Leave out the suspects, if the job has nodes enough without them: they can check themselves too, and a job that
    waits for ever cannot. Returns what is to be said of it."""
    excluded = records.excluded()
    suspects = {node: entry for node, entry in _suspects(run).items() if node not in excluded}
    if not suspects:
        return ""
    needed = int(os.environ["SLURM_JOB_NUM_NODES"])
    others = usable_nodes(line.split() for line in states.splitlines()) - {*excluded, *suspects}
    if len(others) < needed:
        known = f"of its partition {len(others)} others are up, and the job needs {needed}"
        why = known if states else "Slurm does not say how many others are up"
        return f"; {', '.join(suspects)} not left out: {why}"
    _leave_out(records, suspects)
    return ""


def _take_back(records: Records, run: Path | None) -> None:
    """No longer leave out nodes that were suspect of a value which another start has computed too: it was the batch."""
    try:
        rows = read_bad_steps(run) if run is not None else []
    except InputError:
        return  # the next start refuses the file, with that line
    believed = {row["step"] for row in rows if "nodes" in row and row["action"] in ("stop", "skip", "rewind")}
    excluded = records.excluded()
    kept = {node: entry for node, entry in excluded.items() if entry.get("step") not in believed}
    if kept != excluded:
        write_json(records.bad_nodes, kept)


def _leave_out(records: Records, nodes: dict[str, dict[str, Any]]) -> None:
    """Remember nodes with the reason."""
    now = {node: entry | {"time": time.time()} for node, entry in nodes.items()}
    write_json(records.bad_nodes, records.excluded() | now)


def _again(records: Records, cause: str, message: str) -> int:
    """Another start, for the batch script: prints the nodes that it is to do without."""
    if records.bad_nodes.exists():
        print(",".join(sorted(records.excluded())) or "-")
    return _end(records, cause, AGAIN, message, "requeue")


def _first_end(records: Records) -> tuple[str, str]:
    """The first end that srun saw, in its own words: ("node02: task 1", "Killed"); empty if there is none."""
    starts = [row for row in records.events() if row["event"] == "start"]
    with records.log(_job()[0]).open("rb") as file:
        file.seek(starts[-1]["log_bytes"])
        text = file.read().decode("utf-8", errors="replace")
    match = re.search(r"^srun: error: (\S+: tasks? [\d,\[\]-]+): (.+)$", text, re.MULTILINE)
    return (match[1], match[2]) if match else ("", "")


def _end(records: Records, cause: str, exit_code: int, message: str, decision: str) -> int:
    job_id, restart = _job()
    row = {"event": "end", "job_id": job_id, "restart": restart, "time": time.time(), "cause": cause}
    records.add(row | {"exit_code": exit_code, "message": message, "decision": decision})
    told = {"done": "done", "requeue": "queued again", "stop": "stopped"}[decision]
    print(f"{records.name}: {told}{': ' + message if message else ''}", file=sys.stderr, flush=True)
    return exit_code


def _submission(records: Records, job_id: int, run: Path | None) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "name": records.name,
        "site": "",
        "slurm_conf": os.environ.get("SLURM_CONF", ""),
        "nodes": int(os.environ["SLURM_JOB_NUM_NODES"]),
        "tasks_per_node": int(os.environ["SLURM_NTASKS_PER_NODE"]),
        "submitted": time.time(),
        "run": str(run or ""),
        "steps": 0,
        "after": {},
    }


def _job() -> tuple[int, int]:
    return int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", 0))


def main(arguments: list[str]) -> int:
    """The three questions of the head comment."""
    question, folder, name, *rest = arguments
    records = Records(Path(folder), name)
    match question:
        case "begin":
            return begin(records, Path(rest[0]) if rest else None)
        case "fit":
            return fit(records, rest[0].split())
        case "end":
            return end(records, int(rest[0]), int(rest[1]), Path(rest[3]) if len(rest) > 3 else None, rest[2])
    raise InputError(f"unknown question {question!r}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)
