"""Two data-parallel ranks give the single process's losses, also when the number of ranks changes on the way."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from onevision.model.device import Ranks
from onevision.recipe import Recipe
from onevision.training.checkpoint_files import checkpoint_steps
from onevision.training.history import read_metrics
from onevision.training.loop import train
from tests.forks import Forked, forked, wait_for

MakeRecipe = Callable[..., Recipe]


def train_on_two(recipe: Recipe, folder: Path, stop_after: int | None = None, key: str = "") -> None:
    """Train on two ranks; with `stop_after`, ask one of them to stop once that many rows are there."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                forked(train, recipe, Ranks(rank, 2, rank, 2, f"file://{folder / f'rendezvous-{stop_after}-{key}'}"))
            )
            for rank in range(2)
        ]
        if stop_after is not None:
            wait_for(lambda: len(read_metrics(recipe.output)) >= stop_after)
            ranks[1].signal(15)
        codes = [rank.join() for rank in ranks]
        assert codes == ([75, 75] if stop_after is not None else [0, 0]), [rank.error for rank in ranks]


def test_two_ranks_equal_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = {
        "global_batch_size": 4,
        "steps": 4,
        "stage": "stage1",
        "checkpoint": {"interval": 4},
        "model": {"preset": "tiny", "freeze": ["vision", "language"]},
    }
    one, two = make_recipe("one", **settings), make_recipe("two", **settings)
    train(one)
    train_on_two(two, tmp_path)
    expected, found = read_metrics(one.output), read_metrics(two.output)
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=1e-5)
    for key in ("step", "tokens", "slots", "samples", "patches", "target_tokens", "lr", "flops"):
        assert [row[key] for row in found] == [row[key] for row in expected]


def test_a_run_of_two_ranks_goes_on_with_one(make_recipe: MakeRecipe, whole: Recipe, tmp_path: Path) -> None:
    moved = make_recipe("moved", steps=8)
    train_on_two(moved, tmp_path, stop_after=3)
    stopped = read_metrics(moved.output)[-1]["step"]
    assert 3 <= stopped < 8
    train(moved)
    expected, found = read_metrics(whole.output), read_metrics(moved.output)
    assert [row["step"] for row in found] == list(range(1, 9))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)


def test_a_stop_during_set_up_is_honoured_by_all_before_the_first_step(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=4)
    with ExitStack() as stack:

        def begin(rank: int) -> Forked:
            ranks = Ranks(rank, 2, rank, 2, f"file://{tmp_path / 'rendezvous-early'}")
            return stack.enter_context(forked(train, recipe, ranks))

        alone = begin(1)
        wait_for(lambda: handles(alone.process.pid, signal.SIGUSR2))
        alone.signal(signal.SIGUSR2)
        other = begin(0)
        assert (other.join(), alone.join()) == (75, 75), (other.error, alone.error)
        assert "stopped before step 1 of 4, with nothing new to save; continue with: make resume" in other.error
    assert not checkpoint_steps(recipe.output)
    assert not read_metrics(recipe.output)
    train_on_two(recipe, tmp_path)
    assert [row["step"] for row in read_metrics(recipe.output)] == [1, 2, 3, 4]


def handles(pid: int | None, signum: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)
