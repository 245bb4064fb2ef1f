"""Copies on the node: which are used, which are removed, and that no rank is left waiting. A node is a folder here.

That a run goes on from them with the same bits is shown by the fault matrix (tests/faults).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onevision.errors import InputError, StorageError
from onevision.model.device import Ranks, start
from onevision.recipe import CheckpointRecipe, Recipe
from onevision.training.local_copy import KEEP, LocalCopies, discard, let_go
from tests.forks import forked

STATE = {"model": [torch.arange(1000.0)]}


def recipe_with(node: Path) -> Recipe:
    return replace(Recipe(), checkpoint=CheckpointRecipe(local=str(node)))


def run_in(folder: Path, name: str = "run") -> Path:
    run = folder / name
    run.mkdir(exist_ok=True)
    if not (run / "run.json").exists():
        (run / "run.json").write_text(json.dumps({"id": name}))
    return run


class Starts:
    """Starts of one rank, each on a node, that go on after the checkpoint of a step and write copies."""

    def __init__(self, folder: Path) -> None:
        start(Ranks(), 1)
        self.folder, self.run = folder, run_in(folder)

    def __call__(self, node: str, after: int, *copies: int) -> int | None:
        """The step of the copy that the start goes on from."""
        opened = LocalCopies(recipe_with(self.folder / node), self.run)
        found = opened.newest(after)
        for step in copies:
            opened.save(step, STATE)
        return None if found is None else int(found.stem[5:])

    def on(self, node: str) -> list[int]:
        """Steps of the copies on a node."""
        return sorted(int(path.stem[5:]) for path in (self.folder / node).glob("rank_00000/step_*.pt"))


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    return Starts(tmp_path)


def test_a_start_goes_on_from_the_newest_and_the_next_from_those_of_both(starts: Starts) -> None:
    assert starts("node01", 0, 10, 20, 30) is None
    assert starts.on("node01") == [20, 30]
    assert starts("node01", 20) == 30
    assert starts.on("node01") == [30]
    assert starts("node01", 20, 40) == 30
    assert starts("node01", 20) == 40


def elsewhere(starts: Starts) -> None:
    """A start on another node goes on from the checkpoint."""
    assert starts("node02", 30, 35) is None


def without(starts: Starts) -> None:
    """A start without local copies does."""
    let_go(starts.run)


def rewound(starts: Starts) -> None:
    """A start on another node, which has a copy, goes back from there."""
    shutil.copytree(starts.folder / "node01", starts.folder / "node03")
    opened = LocalCopies(recipe_with(starts.folder / "node03"), starts.run)
    assert opened.newest(30) is not None
    opened.forget()
    assert starts.on("node03") == []


@pytest.mark.parametrize("between", [elsewhere, without, rewound])
def test_copies_of_steps_that_were_done_again_are_not_used(
    starts: Starts, between: Callable[[Starts], None], capsys: pytest.CaptureFixture[str]
) -> None:
    starts("node01", 0, 30, 40)
    between(starts)
    assert starts("node01", 30) is None
    said = "rank 0: that of step 40 is of steps that were done again since; the checkpoint of step 30 used"
    assert said in capsys.readouterr().out
    assert starts.on("node01") == []


def test_there_are_never_more_than_are_kept(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, save = [], torch.save

    def watched(*args: Any) -> None:
        seen.append(len(starts.on("node01")))
        save(*args)

    monkeypatch.setattr(torch, "save", watched)
    starts("node01", 0, 10, 20, 30)
    assert max(seen) == KEEP - 1


def test_ranks_that_are_gone_leave_nothing_behind(starts: Starts) -> None:
    starts("node01", 0, 10)
    own = starts.folder / "node01" / "rank_00000"
    shutil.copytree(own, own.with_name("rank_00001"))  # as a start with another rank on this node left it
    (own.with_name("rank_00002")).mkdir()
    assert starts("node01", 0) == 10
    assert sorted(path.name for path in own.parent.iterdir()) == ["rank_00000", "run.json"]
    discard(recipe_with(own.parent), starts.run)
    assert not own.parent.exists()
    assert [path.name for path in starts.run.iterdir()] == ["run.json"]


def test_a_finished_run_leaves_what_is_another_runs_and_never_fails(starts: Starts) -> None:
    node = starts.folder / "node01"
    starts("node01", 0, 10)
    other = run_in(starts.folder, "other")
    discard(recipe_with(node), other)
    assert starts.on("node01") == [10]
    with pytest.raises(InputError, match=r"node01 on .* holds local copies of run .*/run: choose another folder"):
        LocalCopies(recipe_with(node), other)
    assert starts("node01", 0) == 10
    (starts.folder / "file").touch()
    discard(recipe_with(starts.folder / "file" / "node"), other)
    (node / "run.json").write_text("no JSON")
    discard(recipe_with(node), starts.run)
    assert starts.on("node01") == [10]


def test_a_record_without_a_digest_is_no_copy(starts: Starts, capsys: pytest.CaptureFixture[str]) -> None:
    starts("node01", 0, 10, 20)
    record = starts.folder / "node01" / "rank_00000" / "step_00000020.json"
    record.write_text(record.read_text().replace('"digest"', '"digits"'))
    assert starts("node01", 0) == 10
    assert "'digest' is not what was written; those of step 10 used" in capsys.readouterr().out


def on_two_nodes(folder: Path, rank: int, fault: str) -> None:
    """Rank 0 is on node00, rank 1 on node01, where the fault is."""
    start(Ranks(rank, 2, rank, 2, f"file://{folder / fault}"), 1, 1)
    node = folder / f"node{rank:02d}"
    faulty = rank == 1
    if fault == "owner" and faulty:
        node.mkdir()
        (node / "run.json").write_text("[]")
    if fault == "file" and faulty:
        node.touch()
    opened = LocalCopies(recipe_with(node), folder / "run")
    opened.newest(0)
    if fault == "gone" and faulty:
        shutil.rmtree(node)
    if fault == "away" and faulty:
        (node / "rank_00001" / "folder").mkdir()
    if fault == "away":
        opened.forget()
    opened.save(10, STATE)


@pytest.mark.parametrize(
    ("fault", "error", "line"),
    [
        ("owner", InputError, "node01/run.json was altered: it holds no object"),
        ("file", InputError, "node01 on .* cannot be used: File exists"),
        ("gone", StorageError, "node01/.*step_00000010.pt could not be written: .*No such file or directory"),
        ("away", StorageError, "node01/rank_00001/folder of local copies cannot be removed"),
    ],
)
def test_what_fails_on_one_rank_ends_all_with_its_line(
    tmp_path: Path, fault: str, error: type[InputError] | type[StorageError], line: str
) -> None:
    run_in(tmp_path)
    with ExitStack() as stack:
        ranks = [stack.enter_context(forked(on_two_nodes, tmp_path, rank, fault)) for rank in range(2)]
        assert [rank.join() for rank in ranks] == [error.exit_code] * 2, [rank.error for rank in ranks]
        assert all(re.search(line, rank.error) for rank in ranks), [rank.error for rank in ranks]
