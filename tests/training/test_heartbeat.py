"""A rank that hangs ends with its stacks and its record; one that was only paused does not."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from onevision.errors import Hung, InputError
from onevision.files import read_json, write_json
from onevision.model.device import Ranks
from onevision.recipe import Recipe
from onevision.training.checkpoint_files import checkpoint_steps
from onevision.training.heartbeat import Heartbeat
from onevision.training.history import read_metrics
from onevision.training.loop import train
from tests.forks import Forked, forked, wait_for
from tests.training.test_data_parallel import train_on_two
from tests.training.test_loop import curve

MakeRecipe = Callable[..., Recipe]


def logging_to(log: Path) -> None:
    """Let this process write its stderr, as the launchers do, into a file."""
    os.dup2(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)


def leave_record(path: Path, message: str, step: int) -> None:
    write_json(path, {"message": message, "step": step})


def train_rank(recipe: Recipe, ranks: Ranks, folder: Path) -> None:
    logging_to(folder / f"{ranks.rank}.log")
    train(recipe, ranks, on_hang=partial(leave_record, folder / f"{ranks.rank}.json"))


@contextmanager
def two_ranks(recipe: Recipe, folder: Path, ready: Callable[[], object]) -> Iterator[list[Forked]]:
    """Two ranks that have come so far that it is `ready`."""
    with ExitStack() as stack:
        places = [Ranks(rank, 2, rank, 2, f"file://{folder / 'rendezvous'}") for rank in range(2)]
        ranks = [stack.enter_context(forked(train_rank, recipe, place, folder)) for place in places]
        wait_for(lambda: ready() or not all(rank.alive for rank in ranks))
        yield ranks


@pytest.mark.slow
def test_a_rank_ends_when_another_does_not_answer_and_the_run_goes_on(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train_on_two(make_recipe("whole", steps=12, checkpoint={"interval": 12}), tmp_path)
    recipe = make_recipe("hung", steps=12, hang_seconds=4, checkpoint={"interval": 4})
    with two_ranks(recipe, tmp_path, lambda: checkpoint_steps(recipe.output)) as ranks:
        ranks[1].signal(signal.SIGSTOP)
        assert ranks[0].join() == Hung.exit_code, ranks[0].error
    record, log = read_json(tmp_path / "0.json"), (tmp_path / "0.log").read_text()
    assert 4 <= record["step"] <= 12
    assert f"hung: step {record['step']}, " in record["message"]
    assert record["message"] in log
    assert "training/loop.py" in log.partition(record["message"])[2]
    assert not (tmp_path / "1.json").exists()
    train_on_two(recipe, Path(recipe.output))
    assert curve(recipe.output) == curve(make_recipe("whole").output)


def test_a_rank_that_finds_no_others_ends(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(hang_seconds=1)
    with forked(train_rank, recipe, Ranks(1, 2, 1, 2, f"file://{tmp_path / 'nobody'}"), tmp_path) as child:
        assert child.join() == Hung.exit_code, child.error
    message = "hung: joining the other ranks took more than 1 s; the stacks of all threads are in the rank's log"
    assert read_json(tmp_path / "1.json") == {"message": message, "step": 0}
    assert "init_process_group" in (tmp_path / "1.log").read_text()


def hang(folder: Path, kind: str) -> None:
    logging_to(folder / "log")
    record = partial(leave_record, folder / "record.json")
    with Heartbeat(0.5, (lambda message, step: time.sleep(60)) if kind == "in the record" else record) as heartbeat:
        heartbeat.beat(7, "saving")
        if kind == "with the interpreter's lock":
            ctypes.PyDLL(None).sleep(60)
        if kind == "then an error":  # what the end of another rank would raise here
            wait_for((folder / "record.json").exists)
            raise InputError("connection closed by peer")
        time.sleep(60)


@pytest.mark.parametrize("kind", ["asleep", "then an error", "in the record"])
def test_the_process_ends_with_stacks_and_record(tmp_path: Path, kind: str) -> None:
    with forked(hang, tmp_path, kind) as child:
        assert child.join() == Hung.exit_code, child.error
    log = (tmp_path / "log").read_text()
    assert "hung: step 7, saving took more than 0.5 s" in log
    assert "in hang\n" in log
    assert (tmp_path / "record.json").exists() == (kind != "in the record")


def test_a_hang_that_holds_the_interpreter_ends_too(tmp_path: Path) -> None:
    with forked(hang, tmp_path, "with the interpreter's lock") as child:
        assert child.join() == 1
    log = (tmp_path / "log").read_text()
    assert "Timeout (" in log
    assert "in hang\n" in log


def stay(folder: Path) -> None:
    logging_to(folder / "log")
    with Heartbeat(2) as heartbeat:
        heartbeat.beat(1, "computing")
        time.sleep(0.3)  # it looks once
        (folder / "ready").touch()
        wait_for((folder / "go on").exists)


def test_a_pause_is_no_hang(tmp_path: Path) -> None:
    with forked(stay, tmp_path) as child:
        wait_for((tmp_path / "ready").exists)
        child.signal(signal.SIGSTOP)
        time.sleep(2.3)
        child.signal(signal.SIGCONT)
        child.join(0.5)  # it looks again
        (tmp_path / "go on").touch()
        assert child.join() == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.slow
def test_a_job_paused_as_a_whole_goes_on(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(steps=10, hang_seconds=5, checkpoint={"interval": 10})
    with two_ranks(recipe, tmp_path, lambda: len(read_metrics(recipe.output)) >= 3) as ranks:
        for rank in ranks:
            rank.signal(signal.SIGSTOP)
        time.sleep(5.5)
        for rank in ranks:
            rank.signal(signal.SIGCONT)
        assert [rank.join() for rank in ranks] == [0, 0]
    assert [row["step"] for row in read_metrics(recipe.output)] == list(range(1, 11))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("seconds", [0, 100])
def test_nothing_stays_behind(seconds: float) -> None:
    with Heartbeat(seconds) as heartbeat:
        heartbeat.beat(1, "computing")
        assert ("heartbeat" in [thread.name for thread in threading.enumerate()]) == bool(seconds)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
