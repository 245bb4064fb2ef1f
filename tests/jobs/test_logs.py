"""Logs and cancel: which job is meant, what is shown of its log, how a job of this machine is ended."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import logs
from jobs.attempt import born
from jobs.facts import find_all
from onevision.errors import InputError
from onevision.progress import MARK
from tests.jobs.jobfiles import end, make_run, queue_job, start

DONE = end(7, "finished", 0, "", "done")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished_job(folder: str, name: str, text: str) -> None:
    records = queue_job(Path(folder), name, 7, start(7), DONE, steps=8)
    records.log(7).write_text(text)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert logs.run_logs(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_last_lines_of_rank_0_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    finished_job("runs/a", "a", "one\ntwo\nthree\nfour")
    assert printed(capsys, "runs/a", "lines=3") == "two\nthree\nfour\n"
    assert printed(capsys, "runs/a", "lines=1") == "four\n"
    assert printed(capsys, "runs/a") == "one\ntwo\nthree\nfour\n"


def test_another_rank_has_another_log(capsys: pytest.CaptureFixture[str]) -> None:
    finished_job("runs/a", "a", "rank 0\n")
    Path("runs/a/log/slurm/7_1_log.out").write_text("rank 1\n")
    assert printed(capsys, "runs/a", "rank=1") == "rank 1\n"
    with pytest.raises(InputError, match=r"7_3_log\.out does not exist: a has logs of ranks 0 to 1$"):
        logs.run_logs(["runs/a", "rank=3"])


def test_the_newest_start_of_this_machine_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    finished_job("runs/a", "a", "of the cluster, long ago\n")
    for number, stamp in enumerate(("20260102-120000", "20260102-120000-2", "20260102-120000-1")):
        Path(f"runs/a/log/a-{stamp}.log").write_text(f"start {number}\n")
    Path("runs/a/log/a-20260102-120000-2.rank1.log").write_text("rank 1\n")
    assert printed(capsys, "runs/a") == "start 1\n"
    assert printed(capsys, "runs/a", "rank=1") == "rank 1\n"


def test_of_several_jobs_the_one_that_makes_the_run_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    finished_job("runs/a", "a", "training\n")
    queue_job(Path("runs/a"), "export", 9, start(9), end(9, "finished", 0, "", "done")).log(9).write_text("exporting\n")
    assert printed(capsys, "runs/a") == "training\n"
    assert printed(capsys, "runs/a", "job=export") == "exporting\n"
    with pytest.raises(InputError, match="^runs/a has no job=pack; there are job=a, job=export$"):
        logs.run_logs(["runs/a", "job=pack"])


def test_without_a_run_one_has_to_choose() -> None:
    for number, name in ((5, "corpus"), (6, "pack")):
        queue_job(Path("data"), name, number, start(number))
    with pytest.raises(InputError, match="^data has several jobs: choose one with job=corpus, job=pack$"):
        logs.run_logs(["data"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runs/x"], "runs/x does not exist; folders with runs or jobs: runs/a"),
        (["runs"], "runs holds no run and no queued job; folders with runs or jobs: runs/a"),
        ([], "logs takes one run folder and key=value settings, not none"),
        (["runs/a", "line=3"], "logs: unknown setting 'line'; the nearest is 'lines'"),
        (["runs/a", "rank=first"], "rank=first is not a number"),
        (["runs/a", "follow=always"], "follow=always is neither yes nor no"),
    ],
)
def test_what_cannot_work_is_said(arguments: list[str], line: str) -> None:
    finished_job("runs/a", "a", "\n")
    with pytest.raises(InputError) as raised:
        logs.run_logs(arguments)
    assert str(raised.value) == line


def test_progress_takes_one_line_and_tracebacks_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    steps = "".join(f"{MARK}train {step}/900\n" for step in range(900))
    text = f"begin\n{MARK}load 1/2\n{MARK}load 2/2\n{steps}[error] Traceback\n  File\nValueError\nsecond start\n{steps}"
    log.write_text(text)
    lines = ["begin", f"{MARK}load 2/2", f"{MARK}train 899/900", "[error] Traceback", "  File", "ValueError"]
    out = io.StringIO()
    logs.show_tail(log, 50, out)
    assert out.getvalue().splitlines() == [*lines, "second start", f"{MARK}train 899/900"]
    earlier, offset = logs.tail(log, 3)
    assert earlier == ["ValueError", "second start"]
    assert log.read_bytes()[offset:].decode() == f"{MARK}train 899/900\n"


def test_a_large_log_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_TAIL_BYTES", 25)
    log = tmp_path / "log"
    log.write_text("a long line that was cut off\nsecond\nthird\nfourth")
    assert logs.tail(log, 50) == (["second", "third"], log.read_text().index("fourth"))
    log.write_text("")
    assert logs.tail(log, 50) == ([], 0)


def test_jobs_that_wait_for_a_job_are_found_through_others() -> None:
    queue_job(Path("data"), "corpus", 5)
    queue_job(Path("data"), "pack", 6, after={"5": "corpus"})
    queue_job(Path("runs/a"), "a", 7, steps=8, after={"6": "pack", "4": "init"})
    queue_job(Path("runs/b"), "b", 8, steps=8, after={"4": "init"})
    assert logs.waiting_for(5, find_all()) == {6: "pack", 7: "a"}
    assert logs.waiting_for(8, find_all()) == {}


SAVES = """
import fcntl, os, platform, signal, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.truncate(0)
file.write(f"{os.getpid()} on {sys.argv[2] or platform.node()}")
file.flush()
signal.signal(signal.SIGINT, lambda *_: sys.exit(0) if sys.argv[3] == "save" else None)
print(flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def trainer(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains in runs/a: it holds the lock, and ends when it is asked to, or does not."""
    make_run(Path("runs/a"))
    Path("runs/a/log").mkdir()
    Path("runs/a/log/a-20260102-120000.log").write_text("step 1\n")
    command = [sys.executable, "-c", SAVES, "runs/a/.lock", *request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize("trainer", [("", "save")], indirect=True)
def test_cancel_lets_a_run_save(trainer: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert logs.run_cancel(["runs/a"]) == 0
    assert trainer.wait() == 0
    name = f"a (process {trainer.pid})"
    assert capsys.readouterr().out == (
        f"{name} finishes its step and saves: waiting up to 600 s\n{name}: ended\n"
    )
    assert logs.run_cancel(["runs/a"]) == 0
    assert capsys.readouterr().out == "runs/a: nothing of it runs or waits\n"


@pytest.mark.parametrize("trainer", [("", "stay")], indirect=True)
@pytest.mark.parametrize("setting", ["wait=0", "now=yes"])
def test_cancel_ends_what_does_not_end(
    trainer: subprocess.Popen[bytes], setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert logs.run_cancel(["runs/a", setting]) == 0
    assert trainer.wait() == -signal.SIGKILL
    assert f"a (process {trainer.pid}): killed; what it had saved is untouched" in capsys.readouterr().out


@pytest.mark.parametrize("trainer", [("elsewhere", "stay")], indirect=True)
def test_cancel_leaves_processes_of_other_machines_alone(trainer: subprocess.Popen[bytes]) -> None:
    with pytest.raises(InputError, match=rf"^runs/a is being written by process {trainer.pid} on elsewhere: end it"):
        logs.run_cancel(["runs/a", "now=yes"])
    assert trainer.poll() is None


def test_cancel_ends_a_job_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    attempt = Path("data/log/.pack-20260102-120000")
    attempt.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        identity = {"pid": process.pid, "born": born(process.pid), "host": socket.gethostname()}
        (attempt / "0.json").write_text(json.dumps(identity | {"born": born(os.getpid())}))  # another's number by now
        assert logs.run_cancel(["data"]) == 0
        (attempt / "0.json").write_text(json.dumps(identity | {"host": "elsewhere"}))
        assert logs.run_cancel(["data"]) == 0
        assert process.poll() is None
        assert capsys.readouterr().out == 2 * "data: nothing of it runs or waits\n"
        (attempt / "0.json").write_text(json.dumps(identity))
        assert logs.run_cancel(["data", "job=pack", "now=yes"]) == 0
        assert process.wait() == -signal.SIGKILL
