"""From facts to words: what a run or a queued job is doing, why it waits, how it ended. Asks nothing and nobody."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.facts import Answers, Facts
from jobs.slurm import Accounted, Queued
from onevision.errors import DataError, Diverged, InputError, StorageError
from onevision.progress import duration

_BY_CODE = {
    InputError.exit_code: "wrong input",
    DataError.exit_code: "bad data",
    Diverged.exit_code: "diverged",
    StorageError.exit_code: "storage full or broken",
}
_BY_CAUSE = {
    "crashed": "crash loop",
    "hung": "hung",
    "lost": "lost",
    "suspect": "suspect hardware",
    "unhealthy": "unhealthy nodes",
}
_STATES = {"RUNNING": "running", "COMPLETING": "ending", "CONFIGURING": "starting"}
# squeue's reasons. {partition} and {job} are filled in; a reason that is not here is shown as it is.
_REASONS = {
    "None": "the scheduler has not looked at it yet",
    "Priority": "others are before it",
    "Resources": "waits for free nodes",
    "PartitionNodeLimit": "wants more nodes than partition {partition} has or allows",
    "PartitionTimeLimit": "wants more time than partition {partition} allows",
    "PartitionDown": "partition {partition} is down",
    "PartitionInactive": "partition {partition} takes no jobs to run",
    "JobHeldUser": "held by a person; scontrol release {job}",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held after too many restarts; scontrol release {job}",
    # The controller died within seconds of a start and forgot it, or a node refused the job.
    "launch failed requeued held": "held, as its nodes could not start it; scontrol release {job}",
    "Reservation": "waits for its reservation",
    "ReservationDeleted": "its reservation is gone",
    "Licenses": "waits for licenses",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node has what it asks for",
    "Cleaning": "its last start is being cleaned up",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "AccountNotAllowed": "its account may not use partition {partition}",
    "QOSNotAllowed": "its QOS may not use partition {partition}",
}
_ENDS = {
    "TIMEOUT": "reached its time limit",
    "DEADLINE": "reached its deadline",
    "OUT_OF_MEMORY": "out of memory",
    "BOOT_FAIL": "a node did not start",
    "PREEMPTED": "preempted",
}


@dataclass(frozen=True)
class Row:
    """A line of the table. `why` belongs to the state and is short; `message` is whole and stands below the table."""

    label: str
    state: str
    why: str = ""
    message: str = ""
    nodes: str = ""
    step: str = ""
    loss: str = ""
    speed: str = ""
    left: str = ""
    restarts: str = ""
    live: bool = False  # its job is in the queue, or it runs on this machine, as far as is known


@dataclass(frozen=True)
class _Verdict:
    state: str
    why: str = ""
    message: str = ""


def judge(facts: list[Facts], answers: Answers, now: datetime) -> list[Row]:
    """A row for each run or job; jobs it waits for are looked up among the others. `now` is local time, as squeue's."""
    jobs = {(each.slurm_conf, row["job_id"]): each for each in facts for row in each.events}
    jobs |= {(each.slurm_conf, each.job_id): each for each in facts if each.job}
    return [_row(each, _verdict(each, answers, jobs, now), answers) for each in facts]


def bad_nodes(facts: Iterable[Facts], rows: Iterable[Row]) -> dict[str, str]:
    """Nodes that runs which are not finished leave out: node -> reason, and whose."""
    found: dict[str, tuple[str, list[str]]] = {}
    for each, row in zip(facts, rows, strict=True):
        if row.state != "finished":
            for node, entry in each.bad_nodes.items():
                found.setdefault(node, (str(entry["reason"]), []))[1].append(row.label)
    return {node: f"{reason} (left out by {', '.join(labels)})" for node, (reason, labels) in sorted(found.items())}


def waits(queued: Queued, now: datetime) -> str:
    """Why a pending job waits, by its reason alone."""
    reason, _, detail = (part.strip() for part in queued.reason.strip("()").partition(","))
    if reason == "BeginTime":
        left = _until(queued, now)
        return f"starts in {left}" if left else "starts at once"
    if reason == "ReqNodeNotAvail":
        nodes = detail.partition(":")[2]
        return "a node that it needs is not available" + (f": {nodes}" if nodes else "")
    if reason in _REASONS:
        text = _REASONS[reason].format(partition=queued.partition, job=queued.job_id)
        left = _until(queued, now) if reason in ("Priority", "Resources") else ""
        return f"{text}, expected in {left}" if left else text
    if reason.startswith("QOS"):
        return f"a limit of its QOS is reached ({reason})"
    if reason.startswith("Assoc"):
        return f"a limit of its account is reached ({reason})"
    return queued.reason


def not_readable(facts: Facts) -> str:
    """What is wrong with a folder that is `unreadable`."""
    return f"{facts.unreadable} may not be read by this user: ask its owner"


def _row(facts: Facts, verdict: _Verdict, answers: Answers) -> Row:
    last = facts.rows[-1] if facts.rows else {}
    step = f"{last.get('step', 0)}/{facts.steps}" if facts.steps else ""
    left = ""
    if verdict.state == "running" and last and facts.steps:
        seconds = statistics.median(row["step_seconds"] for row in facts.rows)
        left = duration((facts.steps - last["step"]) * seconds)
    queued = answers.queued.get((facts.slurm_conf, facts.job_id)) if facts.job else None
    own = [row for row in facts.own_events if row["event"] == "start"]
    nodes = queued.nodes if queued is not None else ""
    if not nodes and facts.job and verdict.state in ("queued", "restarting"):
        count = facts.job["nodes"]
        nodes = f"{count} node{'s' if count > 1 else ''} wanted"
    elif not nodes and own:
        nodes = str(own[-1]["nodes"])
    return Row(
        facts.label,
        verdict.state,
        verdict.why,
        verdict.message,
        nodes=nodes,
        step=step,
        loss=f"{last['loss']:.4f}" if last else "",
        speed=f"{last['tokens_per_second']:,.0f}" if last else "",
        left=left,
        restarts=_restarts(facts.events),
        live=(queued is not None and not facts.decided) or verdict.state == "running" or verdict.state.endswith("?"),
    )


def _verdict(facts: Facts, answers: Answers, jobs: dict[tuple[str, int], Facts], now: datetime) -> _Verdict:
    key = (facts.slurm_conf, facts.job_id)
    if facts.unreadable:
        return _Verdict("unreadable", "", not_readable(facts))
    if facts.job and not facts.decided and key in answers.queued:
        return _in_queue(facts, answers, jobs, now)
    if facts.finished:
        return _Verdict("finished")
    if facts.lock and facts.lock.held:
        return _Verdict("running")
    if facts.job is None:
        stopped = facts.lock is not None
        return _Verdict("stopped", "make resume continues it") if stopped else _Verdict("not started")
    if facts.decided:
        return _decided(facts.own_events[-1], facts.steps > 0)
    if facts.slurm_conf in answers.unreachable:
        return _last_known(facts)
    return _gone(facts, answers.accounted.get(key), answers, jobs)


def _in_queue(facts: Facts, answers: Answers, jobs: dict[tuple[str, int], Facts], now: datetime) -> _Verdict:
    queued, own = answers.queued[facts.slurm_conf, facts.job_id], facts.own_events
    ended = bool(own) and own[-1]["event"] == "end"
    message = f"the last start ended: {own[-1]['message']}" if ended else ""
    if queued.state == "PENDING":
        if queued.reason.startswith("Dependency"):
            return _dependent(facts, queued, answers, jobs)
        why = waits(queued, now)
        return _Verdict("restarting" if own else "queued", why, message)
    if queued.state in ("RUNNING", "COMPLETING") and ended:
        return _Verdict("restarting", "", message)
    if queued.state == "RUNNING" and not own:
        return _Verdict("starting")
    if queued.state in ("REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        return _Verdict("restarting", "" if queued.state == "REQUEUED" else waits(queued, now), message)
    return _Verdict(_STATES.get(queued.state, queued.state.lower()))


def _dependent(facts: Facts, queued: Queued, answers: Answers, jobs: dict[tuple[str, int], Facts]) -> _Verdict:
    assert facts.job is not None
    broken = _broken(facts, answers, jobs)
    if broken or queued.reason == "DependencyNeverSatisfied":
        return _Verdict("queued", "can never start", broken or f"{queued.reason}: what it waits for has failed")
    waiting = []
    for number, name in facts.job["after"].items():
        before = jobs.get((facts.slurm_conf, int(number)))
        done = before is not None and _end_of(before, int(number)).get("decision") == "done"
        if not done:
            waiting.append(f"{name} (job {number})")
    return _Verdict("queued", f"waits for {', '.join(waiting)}" if waiting else "waits for another job")


def _broken(facts: Facts, answers: Answers, jobs: dict[tuple[str, int], Facts]) -> str:
    """Which of the jobs that it needs, or that those need, has ended badly, and how; empty if none is known to have."""
    assert facts.job is not None
    for number, name in facts.job["after"].items():
        key = (facts.slurm_conf, int(number))
        if key in answers.queued:
            continue
        before = jobs.get(key)
        end = _end_of(before, key[1]) if before is not None else {}
        accounted = answers.accounted.get(key)
        if end.get("decision") == "stop":
            how = "was stopped" if end["exit_code"] == 130 else f"failed: exit code {end['exit_code']}"
            return f"needs {name} (job {number}), which {how}{_colon(end['message'])}"
        if end.get("decision") == "done" or (accounted is not None and accounted.state == "COMPLETED"):
            continue
        if before is not None and before.job is not None and key[1] == before.job_id:
            deeper = _broken(before, answers, jobs)
            if deeper:
                return deeper
        if accounted is not None:
            how = "was cancelled" if accounted.state == "CANCELLED" else f"ended as {accounted.state}"
            return f"needs {name} (job {number}), which {how}"
    return ""


def _decided(end: dict[str, Any], training: bool) -> _Verdict:
    if end["decision"] == "done":
        return _Verdict("finished")
    code, message = end["exit_code"], end["message"]
    if code == 130:
        return _Verdict("stopped", "by a person" + ("; make resume continues it" if training else ""), message)
    short = _BY_CODE.get(code) if end["cause"] == "failed" else _BY_CAUSE.get(end["cause"])
    return _Verdict("failed", short or f"exit code {code}", f"exit code {code}{_colon(message)}")


def _last_known(facts: Facts) -> _Verdict:
    own = facts.own_events
    if not own:
        return _Verdict("queued?")
    if own[-1]["event"] == "start":
        return _Verdict("running?")
    return _Verdict("restarting?", "", f"the last start ended: {own[-1]['message']}")


def _gone(facts: Facts, accounted: Accounted | None, answers: Answers, jobs: dict[tuple[str, int], Facts]) -> _Verdict:
    """Neither in the queue nor with a last word."""
    own = facts.own_events
    words = f"; before that: {own[-1]['message']}" if own and own[-1]["event"] == "end" else ""
    log = f"{facts.folder}/log/slurm/{facts.job_id}_0_log.out"
    if not own:
        broken = _broken(facts, answers, jobs)
        if broken:
            return _Verdict("cancelled", "dependency failed", broken)
    if accounted is None or accounted.state in ("PENDING", "RUNNING", "REQUEUED", "COMPLETING"):
        text = f"job {facts.job_id} is not in the queue and left no word: it was cancelled or its node failed"
        return _Verdict("gone", "", f"{text}{words}; see {log}" if own else text)
    if accounted.state == "CANCELLED":
        return _Verdict("cancelled", "by scancel" if own else "before it started", words.removeprefix("; "))
    if accounted.state == "NODE_FAIL":
        where = accounted.nodes or (own[-1].get("nodes", "") if own else "")
        return _Verdict("lost node", "", f"a node of {where} failed and the job was not queued again{words}")
    if accounted.state == "COMPLETED":
        return _Verdict("finished")
    how = _ENDS.get(accounted.state, f"exit code {accounted.exit_code}")
    return _Verdict("failed", how, f"{accounted.state}, exit code {accounted.exit_code}{words}; see {log}")


def _end_of(facts: Facts, job_id: int) -> dict[str, Any]:
    own = [row for row in facts.events if row["job_id"] == job_id]
    return own[-1] if own and own[-1]["event"] == "end" else {}


def _restarts(events: tuple[dict[str, Any], ...]) -> str:
    """Starts after the first, and the steps that they did again. A start on unfit nodes did none."""
    starts = [row for row in events if row["event"] == "start"]
    unfit = {(row["job_id"], row["restart"]) for row in events if row.get("cause") == "unhealthy"}
    again = sum(
        max(0, row["step"] - row["checkpoint"]) for row in starts[1:] if (row["job_id"], row["restart"]) not in unfit
    )
    if len(starts) < 2:
        return ""
    return f"{len(starts) - 1}" + (f" ({again} steps again)" if again else "")


def _until(queued: Queued, now: datetime) -> str:
    """Time until the expected start: "5 s", "12 min", "3 h", "2 days"; empty if none is known or it is over."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", queued.start_time):
        return ""
    seconds = (datetime.fromisoformat(queued.start_time) - now).total_seconds()
    if seconds <= 0:
        return ""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _colon(message: str) -> str:
    return f": {message}" if message else ""
