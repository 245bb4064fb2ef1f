"""Data steps that MPI ranks share: the value of rank 0, or the line of the rank that failed; nobody is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.attempt import runs
from jobs.shared import RankFailed, as_rank, by_mpiexec
from onevision.errors import DataError
from onevision.ranks import Ranks
from tests.forks import forked, wait_for

HERE = Path(__file__).parents[2]


def tell(folder: Path, ranks: Ranks, report: Callable[[str], None] = print) -> list[int]:
    """Every rank leaves a file; rank 0 alone reports."""
    (folder / str(ranks.rank)).touch()
    report(f"{ranks.size} ranks")
    return ranks.gather(ranks.rank)


def break_one(broken: int, ranks: Ranks, report: Callable[[str], None] = print) -> None:
    """One rank finds bad data while the others wait for it."""
    if ranks.rank == broken:
        raise DataError("shard 7 is damaged")
    ranks.wait()


def kill_one(killed: int, ranks: Ranks, report: Callable[[str], None] = print) -> None:
    """One rank is killed while the others wait for it."""
    if ranks.rank == killed:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.wait()


def wait_for_ever(folder: Path, ranks: Ranks, report: Callable[[str], None] = print) -> None:
    """Ranks that say who they are and never end."""
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(1)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and runs(psutil.Process(pid))


def launch(folder: Path) -> Any:
    """As a job on this machine does it; a shell that starts the tests in the background has them ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return by_mpiexec(2, wait_for_ever, folder)


def test_alone_it_is_an_ordinary_call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert as_rank(tell, tmp_path) == [0]
    assert capfd.readouterr().out == "1 ranks\n"


def test_ranks_share_the_work_and_the_first_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert by_mpiexec(3, tell, tmp_path) == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert capfd.readouterr().out == "3 ranks\n"


@pytest.mark.parametrize("broken", [0, 2])
def test_a_rank_that_fails_ends_the_others_with_its_reason(broken: int) -> None:
    with pytest.raises(RankFailed, match="^shard 7 is damaged$") as error:
        by_mpiexec(3, break_one, broken)
    assert error.value.exit_code == DataError.exit_code


def test_a_rank_that_is_killed_ends_the_others() -> None:
    with pytest.raises(RankFailed, match="killed from outside") as error:
        by_mpiexec(3, kill_one, 1)
    assert error.value.exit_code == 137


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_ranks_do_not_outlive_the_job(signum: int, tmp_path: Path) -> None:
    with forked(launch, tmp_path) as job:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        pids = [int(path.name) for path in tmp_path.iterdir()]
        job.signal(signum)
        wait_for(lambda: not any(map(alive, pids)))
        assert job.join() != 0


def test_without_mpiexec_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="4 ranks need mpiexec: run `make setup`"):
        by_mpiexec(4, tell, tmp_path)
