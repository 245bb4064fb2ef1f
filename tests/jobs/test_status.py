"""The status table: what is found in folders, how it is judged with Slurm's answers, how it looks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from jobs import facts as facts_module
from jobs import status
from jobs.arguments import run_recipe
from jobs.cluster import refuse_second
from jobs.facts import Answers, Facts, Lock, ask, elsewhere, find, find_all, folder_facts, read_lock
from jobs.judge import Row, bad_nodes, judge, waits
from jobs.logs import sources
from jobs.records import Records, metrics_ns
from jobs.sites import Site
from jobs.slurm import Accounted, Queued
from onevision.errors import InputError
from tests.jobs.jobfiles import end, make_run, queue_job, start

NOW = datetime(2026, 1, 2, 12, 0, 0)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def queued(job_id: int, state: str, reason: str = "None", nodes: str = "", start_time: str = "N/A") -> Queued:
    return Queued(job_id, "name", state, nodes, reason, "gpu", start_time, "")


def answers(*known: Queued | Accounted) -> Answers:
    return Answers(
        queued={("", each.job_id): each for each in known if isinstance(each, Queued)},
        accounted={("", each.job_id): each for each in known if isinstance(each, Accounted)},
    )


def rows_of(*known: Queued | Accounted) -> dict[str, Row]:
    return {row.label: row for row in judge(find_all(), answers(*known), NOW)}


def row_of(*known: Queued | Accounted) -> Row:
    (row,) = rows_of(*known).values()
    return row


def words(row: Row) -> tuple[str, str]:
    return row.state, row.why


def test_a_running_job_shows_its_figures() -> None:
    make_run(Path("runs/a"), step=400)
    crash = end(7, "crashed", 75, "killed", "requeue")
    queue_job(Path("runs/a"), "a", 7, start(7), crash, start(7, 1, 40, 47), steps=800)
    row = row_of(queued(7, "RUNNING", nodes="node[02-17]"))
    assert words(row) == ("running", "") and row.live and row.message == ""
    assert (row.label, row.nodes, row.step, row.loss, row.speed) == ("a", "node[02-17]", "400/800", "0.0025", "4,000")
    assert (row.left, row.restarts) == ("13:20", "1 (7 steps again)")


def test_a_start_on_unfit_nodes_did_no_step_again() -> None:
    unfit = [start(7, 1, 40, 47), end(7, "unhealthy", 75, "node07: 7 of 8 GPUs", "requeue", 1)]
    queue_job(Path("runs/a"), "a", 7, start(7), *unfit, start(7, 2, 40, 47), steps=800)
    assert row_of(queued(7, "RUNNING")).restarts == "2 (7 steps again)"


@pytest.mark.parametrize(
    ("reason", "start_time", "text"),
    [
        ("Priority", "N/A", "others are before it"),
        ("Resources", "2026-01-02T15:00:00", "waits for free nodes, expected in 3 h"),
        ("BeginTime", "2026-01-02T12:00:05", "starts in 5 s"),
        ("BeginTime", "N/A", "starts at once"),
        ("PartitionNodeLimit", "N/A", "wants more nodes than partition gpu has or allows"),
        ("JobHeldUser", "N/A", "held by a person; scontrol release 7"),
        ("QOSMaxNodePerUserLimit", "N/A", "a limit of its QOS is reached (QOSMaxNodePerUserLimit)"),
        ("AssocGrpGRES", "N/A", "a limit of its account is reached (AssocGrpGRES)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:node[01-02]",
            "N/A",
            "a node that it needs is not available: node[01-02]",
        ),
        ("SomethingNew, that is: unknown", "N/A", "SomethingNew, that is: unknown"),
    ],
)
def test_why_it_waits_is_in_plain_words(reason: str, start_time: str, text: str) -> None:
    assert waits(queued(7, "PENDING", reason, start_time=start_time), NOW) == text


def test_a_job_waits_for_those_that_are_not_done() -> None:
    queue_job(Path("data"), "corpus", 5, start(5), end(5, "finished", 0, "", "done"))
    queue_job(Path("data"), "pack", 6, start(6))
    queue_job(Path("runs/a"), "a", 7, steps=800, after={"5": "corpus", "6": "pack"})
    rows = rows_of(queued(6, "RUNNING"), queued(7, "PENDING", "Dependency"))
    assert words(rows["a"]) == ("queued", "waits for pack (job 6)") and rows["a"].nodes == "16 nodes wanted"
    assert rows["./data: corpus"].state == "finished"
    assert rows["./data: pack"].state == "running"


def test_what_a_failed_dependency_cancels_names_the_root_of_it() -> None:
    queue_job(Path("data"), "corpus", 5, start(5), end(5, "failed", 3, "corpus.h5: 7 of 9 rejected", "stop"))
    queue_job(Path("data"), "pack", 6, after={"5": "corpus"})
    queue_job(Path("runs/a"), "a", 7, steps=800, after={"6": "pack"})
    rows = rows_of(Accounted(6, "CANCELLED", 0, ""), Accounted(7, "CANCELLED", 0, ""))
    why = "needs corpus (job 5), which failed: exit code 3: corpus.h5: 7 of 9 rejected"
    for label in ("./data: pack", "a"):
        assert words(rows[label]) == ("cancelled", "dependency failed") and rows[label].message == why
    still = rows_of(queued(7, "PENDING", "DependencyNeverSatisfied"), Accounted(6, "CANCELLED", 0, ""))["a"]
    assert words(still) == ("queued", "can never start") and still.message == why


@pytest.mark.parametrize(
    ("last", "state", "why", "message"),
    [
        (end(7, "failed", 4, "loss is nan", "stop"), "failed", "diverged", "exit code 4: loss is nan"),
        (end(7, "failed", 74, "no room", "stop"), "failed", "storage full or broken", "exit code 74: no room"),
        (end(7, "crashed", 137, "3 starts", "stop"), "failed", "crash loop", "exit code 137: 3 starts"),
        (end(7, "hung", 76, "step 9", "stop"), "failed", "hung", "exit code 76: step 9"),
        (end(7, "suspect", 77, "step 9", "stop"), "failed", "suspect hardware", "exit code 77: step 9"),
        (end(7, "failed", 1, "odd", "stop"), "failed", "exit code 1", "exit code 1: odd"),
        (end(7, "failed", 130, "saved", "stop"), "stopped", "by a person; make resume continues it", "saved"),
        (end(7, "finished", 0, "", "done"), "finished", "", ""),
    ],
)
def test_the_last_end_says_how_it_went(last: dict[str, object], state: str, why: str, message: str) -> None:
    queue_job(Path("runs/a"), "a", 7, start(7), last, steps=800)
    row = row_of()
    assert (row.state, row.why, row.message, row.live) == (state, why, message, False)
    assert row.nodes == "node[01-16]"


def test_between_two_starts_it_says_what_happened() -> None:
    queue_job(Path("runs/a"), "a", 7, start(7), end(7, "crashed", 75, "node02: Killed", "requeue"), steps=800)
    told = "the last start ended: node02: Killed"
    soon = row_of(queued(7, "PENDING", "BeginTime", start_time="2026-01-02T12:00:05"))
    assert words(soon) == ("restarting", "starts in 5 s") and soon.message == told
    assert row_of(queued(7, "COMPLETING")).state == "restarting"
    queue_job(Path("runs/a"), "a", 7, start(7, 1), steps=800)
    assert row_of(queued(7, "RUNNING")).state == "running"
    assert row_of(queued(7, "SUSPENDED")).state == "suspended"


@pytest.mark.parametrize(
    ("accounted", "state", "why", "message"),
    [
        (Accounted(7, "NODE_FAIL", 0, "node03"), "lost node", "", "a node of node03 failed and the job was not"),
        (Accounted(7, "CANCELLED", 0, ""), "cancelled", "by scancel", ""),
        (Accounted(7, "TIMEOUT", 0, ""), "failed", "reached its time limit", "TIMEOUT, exit code 0; see runs/a/log/"),
        (Accounted(7, "FAILED", 9, ""), "failed", "exit code 9", "FAILED, exit code 9; see runs/a/log/slurm/7_0_log"),
        (None, "gone", "", "job 7 is not in the queue and left no word"),
    ],
)
def test_without_a_last_word_the_accounting_decides(
    accounted: Accounted | None, state: str, why: str, message: str
) -> None:
    queue_job(Path("runs/a"), "a", 7, start(7), steps=800)
    row = row_of(*([accounted] if accounted else []))
    assert words(row) == (state, why) and row.message.startswith(message) and not row.live


def test_only_the_last_submission_counts_but_all_restarts() -> None:
    queue_job(Path("runs/a"), "a", 6, start(6), end(6, "failed", 4, "loss is nan", "stop"), steps=800)
    queue_job(Path("runs/a"), "a", 7, start(7, 0, 40, 42), steps=800)
    row = row_of(queued(7, "RUNNING"))
    assert words(row) == ("running", "") and row.restarts == "1 (2 steps again)"
    assert words(row_of(Accounted(7, "CANCELLED", 0, ""))) == ("cancelled", "by scancel")


def test_without_an_answer_the_folders_tell_what_was_last_known() -> None:
    silent = Answers(unreachable={"": "squeue: no controller"})
    queue_job(Path("runs/a"), "a", 7, steps=800)
    queue_job(Path("runs/b"), "b", 8, start(8), steps=800)
    queue_job(Path("runs/c"), "c", 9, start(9), end(9, "failed", 4, "loss is nan", "stop"), steps=800)
    assert [row.state for row in judge(find_all(), silent, NOW)] == ["queued?", "running?", "failed"]


def test_runs_without_slurm() -> None:
    for name in ("new", "stopped", "done", "start"):
        make_run(Path("runs") / name, step=3 if name != "new" else 0, stage="stage0" if name == "start" else "stage2")
    Path("runs/stopped/.lock").write_text("1 on elsewhere")
    Path("runs/done/step.json").write_text("{}")
    rows = rows_of()
    assert {label: words(row) for label, row in rows.items()} == {
        "done": ("finished", ""),
        "new": ("not started", ""),
        "start": ("not started", ""),
        "stopped": ("stopped", "make resume continues it"),
    }
    assert [rows[label].step for label in ("new", "start", "stopped")] == ["0/800", "", "3/800"]


def test_runs_on_another_disk_are_shown_once(tmp_path: Path) -> None:
    make_run(Path("runs/here"), step=3)
    make_run(tmp_path / "disk" / "stage1", step=4)
    Path("runs/8b").symlink_to(tmp_path / "disk")
    Path("runs/latest").symlink_to("here")
    Path("runs/circle").symlink_to("circle")
    assert {label: row.step for label, row in rows_of().items()} == {"here": "3/800", "8b/stage1": "4/800"}


HOLD = """
import fcntl, os, platform, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(f"{os.getpid()} on {platform.node()}")
file.flush()
print(flush=True)
sys.stdin.read()
"""


def test_who_holds_the_lock_runs() -> None:
    make_run(Path("runs/a"), step=3)
    assert read_lock(Path("runs/a/.lock")) is None
    command = [sys.executable, "-c", HOLD, "runs/a/.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        lock = read_lock(Path("runs/a/.lock"))
        row = row_of()
        holder.communicate()
    assert lock is not None and (lock.held, lock.pid) == (True, holder.pid)
    assert lock.holder == f"{holder.pid} on {os.uname().nodename}"
    assert (row.state, row.left, row.live) == ("running", "26:34", True)
    lock = read_lock(Path("runs/a/.lock"))
    assert lock is not None and not lock.held


def test_runs_and_jobs_are_found_but_not_looked_for_among_images() -> None:
    make_run(Path("runs/deep/down/a"))
    for closed in ("checkpoints", "log", "tensorboard"):
        make_run(Path("runs/deep/down/a") / closed / "x")
    make_run(Path("data/records/images/x"))
    Path("data/records/records.jsonl").touch()
    make_run(Path("runs/deep/down/a/release/runs/a"))
    Path("runs/deep/down/a/release/SHA256SUMS").touch()
    queue_job(Path("data"), "pack", 6)
    queue_job(Path("runs/deep/down/a"), "export", 8)
    queue_job(Path("runs/zero"), "init", 9)
    labels = ["deep/down/a", "deep/down/a: export", "zero", "./data: pack"]
    assert [facts.label for facts in find_all()] == labels
    assert [facts.label for facts in find(Path("runs/zero"))] == ["zero"]


def test_broken_files_hide_no_other_run() -> None:
    make_run(Path("runs/a"), step=2)
    with Path("runs/a/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    make_run(Path("runs/b"))
    Path("runs/b/run.json").write_text("{")
    records = queue_job(Path("runs/c"), "c", 7, start(7), steps=800)
    with records.starts.open("a") as file:
        file.write('{"event": "e')
    rows = rows_of(queued(7, "RUNNING"))
    assert {label: (row.state, row.step) for label, row in rows.items()} == {
        "a": ("not started", "2/800"),
        "c": ("running", "0/800"),
    }


def test_what_may_not_be_read_hides_no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> Lock | None:
        if path == Path("runs/a/.lock"):
            raise PermissionError(13, "Permission denied", path)
        return read_lock(path)

    monkeypatch.setattr(facts_module, "read_lock", refused)
    make_run(Path("runs/a"), step=3)
    make_run(Path("runs/b"))
    rows = rows_of()
    assert (rows["a"].state, rows["b"].state) == ("unreadable", "not started")
    assert rows["a"].message == "runs/a/.lock may not be read by this user: ask its owner"
    with pytest.raises(InputError, match="^runs/a/.lock may not be read by this user"):
        sources(Path("runs/a"))


def test_bad_nodes_are_those_of_runs_that_go_on() -> None:
    for number, name in enumerate(("a", "b", "done")):
        last = [end(number, "finished", 0, "", "done")] if name == "done" else []
        records = queue_job(Path("runs") / name, name, number, start(number), *last, steps=800)
        records.bad_nodes.write_text(json.dumps({f"node{number // 2}": {"reason": "7 of 8 GPUs", "time": 1.0}}))
    facts = find_all()
    left_out = bad_nodes(facts, judge(facts, answers(queued(0, "RUNNING"), queued(1, "RUNNING")), NOW))
    assert left_out == {"node0": "7 of 8 GPUs (left out by a, b)"}


def shown(width: int | None, rows: list[Row]) -> list[str]:
    out = io.StringIO()
    terminal = {"force_terminal": True, "color_system": None, "width": width} if width else {"width": 80}
    known = Answers(unreachable={"": "squeue: Unable to contact slurm controller"})
    console = Console(file=out, highlight=False, **terminal)  # type: ignore[arg-type]
    status.show(console, rows, {"node07": "7 of 8 GPUs (left out by a)"}, known)
    return [line.rstrip() for line in out.getvalue().splitlines()]


LONG = Row(
    "demo/stage1_5",
    "restarting",
    "waits for free nodes, expected in 3 h",
    "the last start ended: " + "word " * 40,
    nodes="node[01-02,04-16]",
    step="40000/80000",
    loss="0.0125",
    speed="1,234,567",
    left="99:59:59",
    restarts="12 (345 steps again)",
)


@pytest.mark.parametrize("width", [80, 160, None])
def test_nothing_is_cut_at_any_width(width: int | None) -> None:
    lines = shown(width, [LONG, Row("b", "finished", nodes="node[01-02]")])
    text = " ".join(" ".join(lines).split())
    table = lines[: next(index for index, line in enumerate(lines) if line.startswith("demo/stage1_5: "))]
    figures = (LONG.nodes, LONG.step, LONG.loss, LONG.speed, LONG.left)
    for part in (*LONG.why.split(), *figures, "(345", LONG.message.strip()):
        assert part in text
    assert "…" not in text and "Slurm does not answer" in lines[0]
    assert lines[-1] == "node07: 7 of 8 GPUs (left out by a)"
    if width:
        assert all(len(line) <= width for line in table[1:])
    if width != 80:
        assert any(all(cell in line for cell in (LONG.label, LONG.why, LONG.nodes, LONG.restarts)) for line in table)


def test_columns_that_no_row_needs_are_left_out() -> None:
    heading = shown(None, [Row("a", "finished", step="8/8", loss="0.1", speed="9")])[2]
    assert heading.split() == ["run", "state", "step", "loss", "tokens/s"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status.run([]) == 0
    assert capsys.readouterr().out == "no runs yet: `make demo` makes the first ones\n"
    queue_job(Path("runs/a"), "a", 6, start(6), end(6, "failed", 4, "loss is nan", "stop"), steps=800)
    make_run(Path("runs/b"))
    assert status.run(["runs/a"]) == 0
    out = capsys.readouterr().out
    assert "failed: diverged" in out and "a: exit code 4: loss is nan" in out and "not started" not in out
    with pytest.raises(InputError, match=r"^runs/c does not exist; folders with runs or jobs: runs/a, runs/b$"):
        status.run(["runs/c"])
    with pytest.raises(InputError, match=r"^runs is not a run folder: it has no recipe.yaml; .*: runs/a, runs/b$"):
        run_recipe(Path("runs"), [])


def test_the_slow_packages_are_not_imported() -> None:
    code = "import sys, jobs.status; print({'torch', 'omegaconf', 'submitit', 'psutil'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


def test_a_job_that_makes_a_run_is_part_of_its_row() -> None:
    make_run(Path("runs/a"))
    queue_job(Path("runs/a"), "old", 5, steps=800)
    queue_job(Path("runs/a"), "a", 7, steps=800)
    found: list[Facts] = folder_facts(Path("runs/a"))
    assert [(facts.label, facts.job_id) for facts in found] == [("a", 7), ("a: old", 5)]


def test_whether_a_run_has_new_steps_does_not_depend_on_the_clock() -> None:
    folder = Path("runs/a")
    make_run(folder, step=3)
    metrics = folder / "metrics.jsonl"
    begun = start(7) | {"time": 4e9, "metrics_ns": metrics_ns(folder)}  # the clock was far ahead then
    queue_job(folder, "a", 7, begun, steps=800)
    (facts,) = folder_facts(folder)
    assert not facts.has_news
    os.utime(metrics, ns=(0, metrics.stat().st_mtime_ns - 10**12))  # written since, with the clock set back
    assert facts.has_news
    assert not Facts(folder, steps=1).has_news


def test_a_job_that_a_colleague_queued_is_asked_for_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """squeue shows this user's jobs, and those of the owners of the jobs in the folders; only this user's elsewhere."""
    owner = os.getuid()
    make_run(Path("runs/a"), step=3)
    queue_job(Path("runs/a"), "a", 7, start(7), steps=800)
    queue_job(tmp_path / "other/b", "b", 8, start(8), steps=800)
    line = "{}\x1f{}\x1fRUNNING\x1fn1\x1fNone\x1fgpu\x1fN/A\x1f{}\x1f{}\n"
    jobs = line.format(7, "a", "", owner) + line.format(8, "b", tmp_path / "other/b", owner)
    (tmp_path / "jobs").write_text(jobs)
    (tmp_path / "bin").mkdir()
    squeue = f'case ",${{1#--user=}}," in *,{owner},*) cat {tmp_path}/jobs;; esac'
    for name, script in (("squeue", squeue), ("sacct", "")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    facts, known = find_all(), Answers()
    ask(facts, known)
    assert [row.state for row in judge(facts, known, NOW)] == ["running"]
    assert elsewhere(facts, known) == []
    with pytest.raises(InputError, match=r"^a is in the queue already as job 7 \(running\)"):
        refuse_second(Records(Path("runs/a/log/slurm"), "a"), Site("a800", scheduler="slurm"))
