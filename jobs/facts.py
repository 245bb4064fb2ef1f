"""What folders and Slurm say of every run and every queued job. Nothing is judged here: jobs/status.py does that."""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.records import Records, metrics_ns
from jobs.slurm import Accounted, Queued, Slurm, SlurmError

ROOTS = ("runs", "data")  # where runs and data jobs are looked for
FINAL = ("done", "stop")  # decisions after which a job is not started again
# Folders without runs in them
_SUMS = "SHA256SUMS"
_CLOSED = {"checkpoints", "tensorboard", "log", "evaluation", "lmms_eval", "export", "images"}
_DEPTH = 5  # below a root
_TAIL_BYTES = 65_536
_TAIL_ROWS = 20
_FLOCK = "hhqqi4x"  # struct flock of Linux on 64 bits: type, whence, start, length, pid


@dataclass(frozen=True)
class Lock:
    """Who trains in a run folder: `holder` as it stands in .lock ("pid on host"), if the lock is `held`; `pid` is the
    holder's as the kernel knows it, 0 if it is not of this machine."""

    held: bool = False
    holder: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Facts:
    """What is known of a run (`is_run`), of a queued job, or of both when the job trains the run."""

    folder: Path  # the run folder, or the one whose log/ the job writes to
    is_run: bool = False
    stage: str = ""
    steps: int = 0  # that the run or job is to make; 0: it is not training
    rows: tuple[dict[str, Any], ...] = ()  # last rows of metrics.jsonl
    finished: bool = False  # the run's step.json is there
    lock: Lock | None = None
    job: dict[str, Any] | None = None  # the last submission
    owners: tuple[int, ...] = ()  # who queued it, at most one: a colleague may train a run of a shared folder
    events: tuple[dict[str, Any], ...] = ()  # of all submissions
    bad_nodes: dict[str, Any] = field(default_factory=dict)
    unreadable: str = ""  # a file that this user may not read; nothing else is known then

    @property
    def label(self) -> str:
        """What RUN= wants, and for a job beside a run its name."""
        inside = self.folder.parts[:1] == ("runs",) and len(self.folder.parts) > 1
        name = str(self.folder.relative_to("runs")) if inside else str(self.folder)
        if not inside and not self.folder.is_absolute():
            name = f"./{name}"
        return name if self.is_run else f"{name}: {self.name}"

    @property
    def name(self) -> str:
        """The job's name; empty for a run that was never queued."""
        return str(self.job["name"]) if self.job else ""

    @property
    def job_id(self) -> int:
        """The last submission's number; 0 without one."""
        return int(self.job["job_id"]) if self.job else 0

    @property
    def slurm_conf(self) -> str:
        """Which Slurm it was queued on."""
        return str(self.job["slurm_conf"]) if self.job else ""

    @property
    def own_events(self) -> list[dict[str, Any]]:
        """Those of the last submission."""
        return [row for row in self.events if row["job_id"] == self.job_id]

    @property
    def decided(self) -> bool:
        """Whether the last submission has ended for good and said so."""
        own = self.own_events
        return bool(own) and own[-1]["event"] == "end" and own[-1]["decision"] in FINAL

    @property
    def has_news(self) -> bool:
        """Whether ending the job at once would lose steps; one that is not training can be asked at any time."""
        starts = [row for row in self.own_events if row["event"] == "start"]
        return not self.steps or (bool(starts) and metrics_ns(self.folder) not in (0, starts[-1].get("metrics_ns")))


@dataclass
class Answers:
    """What Slurm answered. A job is known by its Slurm (slurm_conf) and its number."""

    queued: dict[tuple[str, int], Queued] = field(default_factory=dict)
    accounted: dict[tuple[str, int], Accounted] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)  # slurm_conf -> why squeue failed
    unaccounted: dict[str, str] = field(default_factory=dict)  # slurm_conf -> why sacct failed


def find(root: Path) -> list[Facts]:
    """All runs and jobs in a folder and below, sorted by folder; a run before the jobs beside it."""
    return [facts for folder in sorted(_walk(root, _DEPTH, root.resolve())) for facts in folder_facts(folder)]


def find_all() -> list[Facts]:
    """Those in the folders where they are by default."""
    return [facts for root in ROOTS for facts in find(Path(root))]


def folder_facts(folder: Path) -> list[Facts]:
    """The run in a folder, if it is one, and the jobs that log there. Where this user may not read something, the
    folder is one entry that says so: status must show the other runs."""
    try:
        return _folder_facts(folder)
    except PermissionError as error:
        return [Facts(folder, is_run=True, unreadable=str(error.filename))]


def _folder_facts(folder: Path) -> list[Facts]:
    jobs = [Records(path.parent, path.name.removesuffix(".job.json")) for path in _job_files(folder)]
    found = [(records, job) for records in jobs if (job := _mapping(records.job))]
    values = _mapping(folder / "run.json").get("values", {})
    if _mapping(folder / "step.json").get("step") == "import":  # whose job logs beside the folder that it makes
        values = {"stage": "stage0"}
    makers = [pair for pair in found if pair[1]["run"] or pair[0].name == "init"]
    own = max(makers, key=lambda pair: pair[1]["submitted"], default=None)
    facts = []
    if values or own:
        stage = str(values.get("stage", ""))
        job = own[1] if own else {}
        facts.append(
            Facts(
                folder,
                is_run=True,
                stage=stage,
                steps=0 if stage == "stage0" else int(values.get("train.steps") or job.get("steps") or 0),
                rows=_last_rows(folder / "metrics.jsonl"),
                finished=(folder / "step.json").exists(),
                lock=read_lock(folder / ".lock"),
                **(_of_job(*own) if own else {}),
            )
        )
    return facts + [Facts(folder, **_of_job(*pair)) for pair in found if pair is not own]


def ask(facts: list[Facts], answers: Answers) -> None:
    """Ask each Slurm in use: squeue once, and sacct once about the jobs that went without a word."""
    for conf in sorted({each.slurm_conf for each in facts if each.job and not each.decided}):
        slurm = Slurm(conf)
        owners = {owner for each in facts if each.slurm_conf == conf and not each.decided for owner in each.owners}
        try:
            answers.queued |= {(conf, number): queued for number, queued in slurm.queue(owners).items()}
        except SlurmError as error:
            answers.unreachable[conf] = str(error)
            continue
        gone = [
            each
            for each in facts
            if each.job and each.slurm_conf == conf and not each.decided and (conf, each.job_id) not in answers.queued
        ]
        numbers = {each.job_id for each in gone if not each.finished}
        numbers |= {int(number) for each in gone if each.job for number in each.job["after"]}
        try:
            found = slurm.accounting(sorted(numbers - {row["job_id"] for each in facts for row in _last_words(each)}))
            answers.accounted |= {(conf, number): accounted for number, accounted in found.items()}
        except SlurmError as error:
            answers.unaccounted[conf] = str(error)


def elsewhere(facts: list[Facts], answers: Answers) -> list[Facts]:
    """This user's queued jobs outside the folders that were looked at: their comment in squeue names their folder."""
    known = {(each.slurm_conf, each.job_id) for each in facts}
    more = []
    for (conf, number), queued in answers.queued.items():
        folder = Path(queued.comment)
        if queued.own and (conf, number) not in known and folder.is_absolute():
            more += [each for each in folder_facts(folder) if (each.slurm_conf, each.job_id) == (conf, number)]
    return more


def read_lock(path: Path) -> Lock | None:
    """Whether another process holds the lock of a run, and which; None where there is no such file."""
    try:
        with path.open("rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
            holder = file.read().decode("utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    return Lock() if kind == fcntl.F_UNLCK else Lock(True, holder, pid)


def _of_job(records: Records, job: dict[str, Any]) -> dict[str, Any]:
    return {
        "job": job,
        "owners": tuple(records.owners()),
        "events": tuple(row for row in records.events() if "job_id" in row and "event" in row),
        "bad_nodes": _mapping(records.bad_nodes),
    }


def _walk(folder: Path, depth: int, root: Path) -> Iterator[Path]:
    """Folders that hold a run or the log of a queued job. Those that a link brings from outside `root` count, as runs
    often lie on another disk; a link inside it is another name of what is found anyway."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name: _enters(entry, root) for entry in entries}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    if _SUMS in names:  # of a release bundle, with copies of the records of runs
        return
    imported = "step.json" in names and names.get("checkpoints", False)
    if "run.json" in names or imported or (names.get("log") and _has_jobs(folder)):
        yield folder
    if depth and "records.jsonl" not in names:  # beside records there are their images, millions of them
        for name, is_folder in names.items():
            if is_folder and name not in _CLOSED and not name.startswith("."):
                yield from _walk(folder / name, depth - 1, root)


def _has_jobs(folder: Path) -> bool:
    try:
        return (folder / "log" / "slurm").is_dir()
    except PermissionError:  # folder_facts says so
        return True


def _enters(entry: os.DirEntry[str], root: Path) -> bool:
    try:
        if not entry.is_symlink():
            return entry.is_dir()
        return entry.is_dir() and not Path(entry.path).resolve().is_relative_to(root)
    except OSError:  # links in a circle
        return False


def _job_files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder / "log" / "slurm") as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.endswith(".job.json"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or not one: status must show the other runs."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_words(facts: Facts) -> list[dict[str, Any]]:
    return [row for row in facts.events if row["event"] == "end" and row["decision"] in FINAL]


def _last_rows(path: Path) -> tuple[dict[str, Any], ...]:
    """The last whole rows, read from the end of the file: a run of days has a large one."""
    rows: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return ()
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.insert(0, row)
        if len(rows) == _TAIL_ROWS:
            break
    return tuple(rows)
