"""Real submitit jobs on this machine: what comes back from each way a job can end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.attempt import born, new_attempt, process_of, runs, write_identity
from jobs.here import JobFailed, launch, local_executor, visible_gpus
from onevision.errors import InputError
from tests.jobs import samples

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where a job's process finds `tests.jobs.samples`


def only_log(folder: Path) -> Path:
    """The one file an attempt may leave."""
    (log,) = folder.iterdir()
    assert log.suffix == ".log" and not log.is_symlink()
    return log


def test_the_value_comes_back_and_the_log_is_shown_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")  # as in a locale of that encoding: the log is UTF-8 all the same
    assert launch("add", samples.add, 1, 2, log_folder=tmp_path) == 3
    lines = ["adding", "▸ adding    1/3", "▸ adding    2/3", "▸ adding    3/3", "[1/2] added"]
    assert capsys.readouterr().out.splitlines() == lines
    assert only_log(tmp_path).read_text().splitlines() == lines


def test_each_attempt_has_its_log(tmp_path: Path) -> None:
    for _ in range(2):
        launch("add", samples.add, 1, 2, log_folder=tmp_path)
    assert len(list(tmp_path.glob("add-*.log"))) == 2 == len(list(tmp_path.iterdir()))


def test_an_error_for_the_user_arrives_as_its_line_and_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobFailed) as raised:
        launch("corpus", samples.bad_data, log_folder=tmp_path)
    assert (str(raised.value), raised.value.exit_code) == (r"corpus.h5: 7 rejected\nof 9", 3)
    assert capsys.readouterr() == ("", "")
    assert "7 rejected" in only_log(tmp_path).read_text()


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="No space left on device; make room and run again") as raised:
        launch("corpus", samples.no_space, log_folder=tmp_path)
    assert raised.value.exit_code == 74


@pytest.mark.parametrize(
    ("call", "what"),
    [(samples.surprise, "TypeError: a surprise"), (samples.unpicklable, "TypeError: cannot pickle")],
)
def test_an_unexpected_error_is_one_line_and_a_traceback_in_the_log(
    call: object, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobFailed) as raised:
        launch("train", call, log_folder=tmp_path)  # type: ignore[arg-type]
    log = only_log(tmp_path)
    line = str(raised.value)
    assert line.startswith(f"job train failed: {what}") and line.endswith(f"; see {log}") and "\n" not in line
    assert raised.value.exit_code == 1
    assert "Traceback (most recent call last)" in log.read_text() and what in log.read_text()
    assert capsys.readouterr() == ("", "")


def test_a_crash_is_one_line_and_a_stack_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobFailed, match="killed from outside .* or crashed; see ") as raised:
        launch("train", samples.crash, log_folder=tmp_path)
    assert raised.value.exit_code == 137
    assert "Segmentation fault" in only_log(tmp_path).read_text()
    assert capsys.readouterr() == ("", "")


def test_each_process_knows_its_rank_and_where_to_meet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("ranks", samples.ranks, str(tmp_path), log_folder=tmp_path / "log", processes=2) == 0
    first, second = ((tmp_path / f"rank{rank}").read_text().split(" ") for rank in range(2))
    gpus = local_executor(tmp_path / "unused", 2).parameters["gpus_per_node"]
    port, devices = first[4], ",".join(map(str, visible_gpus()[:gpus]))
    assert first == ["0", "0", "2", "127.0.0.1", port, devices]
    assert second == ["1", "1", "2", "127.0.0.1", port, devices]
    assert capsys.readouterr().out == "this is rank 0\n"
    logs = [path.read_text() for path in sorted((tmp_path / "log").iterdir())]
    assert logs == ["this is rank 0\n", "this is rank 1\n"]


def test_a_killed_process_ends_its_peers_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(JobFailed, match=r"killed from outside .*\.rank1\.log$") as raised:
        launch("train", samples.rank_1_dies, log_folder=tmp_path, processes=2)
    assert raised.value.exit_code == 137
    assert time.monotonic() - began < 10


def test_what_a_killed_process_does_to_its_peers_is_not_the_cause(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"killed from outside .*\.rank1\.log$") as raised:
        launch(
            "train",
            samples.rank_1_dies_and_the_other_notices,
            str(tmp_path),
            log_folder=tmp_path / "log",
            processes=2,
        )
    assert raised.value.exit_code == 137


def test_a_failed_process_ends_its_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.here._PEER_SECONDS", 0.5)
    with pytest.raises(JobFailed, match="rank 1: disk full") as raised:
        launch("train", samples.rank_1_fails, log_folder=tmp_path, processes=2)
    assert raised.value.exit_code == 74


def test_an_interrupted_process_leaves_its_peers_the_time_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.here._PEER_SECONDS", 0.2)
    with pytest.raises(JobFailed, match="^saved$") as raised:
        launch("train", samples.rank_1_saves_longer, str(tmp_path), log_folder=tmp_path / "log", processes=2)
    assert raised.value.exit_code == 75
    assert (tmp_path / "saved").exists()


def test_a_job_that_still_runs_is_not_started_twice(tmp_path: Path) -> None:
    running = new_attempt(tmp_path, "train")
    pid = os.getpid()
    with pytest.raises(InputError, match=f"job train still runs as process {pid} .*: kill {pid}$"):
        launch("train", samples.add, 1, 2, log_folder=tmp_path)
    assert launch("train 2/3", samples.add, 1, 2, log_folder=tmp_path) == 3
    assert running.work.exists()


def test_setting_the_clock_hides_no_job_and_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_attempt(tmp_path, "train")
    before.log().touch()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 17.0)  # the kernel derives it from the clock
    assert runs(process_of(before.identity("launcher"))[1])
    before.settle()
    monkeypatch.setattr("jobs.attempt.time.strftime", lambda form: "20200102-030405")
    assert new_attempt(tmp_path, "train").work.name > before.work.name


def test_what_a_dead_launcher_left_is_tidied_up(tmp_path: Path) -> None:
    former = new_attempt(tmp_path, "train")
    write_identity(former.identity(0))
    for identity in former.work.glob("*.json"):  # of a process that has our number and another start
        identity.write_text(identity.read_text().replace(born(os.getpid()), "1 ticks after boot x"))
    output = former.work / "123_0_log.out"
    output.write_text("step 7\n")
    former.show_log(0, output)
    assert former.log().read_text() == "step 7\n"
    assert launch("train", samples.add, 1, 2, log_folder=tmp_path) == 3
    assert former.log().read_text() == "step 7\n" and not former.log().is_symlink()
    assert not former.work.exists()


def test_gpus_are_those_the_user_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local_executor(tmp_path, 1).parameters["visible_gpus"] == (3,)
    assert local_executor(tmp_path, 8).parameters["gpus_per_node"] == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES=GPU-1234: give indices"):
        launch("train", samples.add, 1, 2, log_folder=tmp_path / "log")
    assert list((tmp_path / "log").iterdir()) == []
