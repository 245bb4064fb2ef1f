"""Checkpoints: complete or not there, the newest good one wins, a full disk loses nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from onevision.errors import DataError, InputError, StorageError
from onevision.evaluation.harness.places import awaited, result_file, results_folder
from onevision.fingerprint import file_digest
from onevision.model.device import Ranks
from onevision.recipe import Recipe
from onevision.training import checkpoint_files
from onevision.training.checkpoint_files import (
    checkpoint_steps,
    find,
    newest,
    prune,
    step_folder,
    verify,
    verify_sizes,
)
from onevision.training.loop import train
from tests.forks import Forked, forked
from tests.training.test_loop import curve

MakeRecipe = Callable[..., Recipe]


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe_values: Callable[..., Recipe]) -> Recipe:
    """A run of four steps with checkpoints of steps 2 and 4."""
    recipe = recipe_values(str(tmp_path_factory.mktemp("finished") / "run"), steps=4)
    train(recipe)
    return recipe


@pytest.fixture
def copied(finished: Recipe, tmp_path: Path) -> Recipe:
    """A copy of the finished run that does not know that it is finished."""
    recipe = replace(finished, output=str(tmp_path / "copy"))
    shutil.copytree(finished.output, recipe.output)
    (Path(recipe.output) / "step.json").unlink()
    return recipe


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["__0_0.distcp", "common.pt", ".metadata", "checkpoint.json"])
def test_a_broken_newest_checkpoint_is_skipped(
    copied: Recipe, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], None], name: str
) -> None:
    run = Path(copied.output)
    whole = curve(run)
    damage(step_folder(run, 4) / name)
    with pytest.raises(DataError):
        find(step_folder(run, 4))
    found = newest(run)
    assert found is not None
    assert found[1]["step"] == 2
    message = capfd.readouterr().out
    assert "skipping checkpoint" in message
    if damage is _flip and name != "checkpoint.json":  # all but the content of a file shows without reading it
        assert verify_sizes(step_folder(run, 4))["step"] == 4
    else:
        with pytest.raises(DataError):
            find(step_folder(run, 4), verify_sizes)
    assert str(step_folder(run, 4) / name) in message or name == "checkpoint.json"
    if name == "__0_0.distcp":  # going on from the older one is the same for every kind of damage
        train(copied)
        assert curve(run) == whole


def test_a_checkpoint_that_cannot_be_read_is_skipped(
    copied: Recipe, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = step_folder(copied.output, 4) / "__0_0.distcp"

    def fails(path: Path) -> str:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return file_digest(path)

    monkeypatch.setattr(checkpoint_files, "file_digest", fails)
    found = newest(copied.output)
    assert found is not None and found[1]["step"] == 2
    assert f"{bad} cannot be read: Input/output error" in capfd.readouterr().out


def test_when_every_checkpoint_is_broken_the_run_is_not_started_over(copied: Recipe) -> None:
    run = Path(copied.output)
    whole, steps = curve(run), checkpoint_steps(run)
    for step in steps:
        _truncate(step_folder(run, step) / "__0_0.distcp")
    with pytest.raises(InputError, match="holds no checkpoint"):
        find(run)
    with pytest.raises(DataError, match=r"holds no checkpoint that is whole, .*of steps 2, 4\): bring one back"):
        train(copied)
    assert curve(run) == whole and checkpoint_steps(run) == steps
    shutil.rmtree(run / "checkpoints")
    train(copied)
    assert curve(run) == whole


def test_a_broken_newer_checkpoint_takes_the_place_of_no_whole_one(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        step_folder(tmp_path, step).mkdir(parents=True)
    prune(tmp_path, 6, 2)  # that of 8 was found broken, and the run goes on after 6
    assert checkpoint_steps(tmp_path) == [4, 6, 8]


def test_the_newest_are_kept(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=4, checkpoint={"interval": 1, "keep": 2})
    train(recipe)
    assert checkpoint_steps(recipe.output) == [3, 4]
    assert not list((Path(recipe.output) / "checkpoints").glob(".*"))


def test_those_that_an_evaluation_awaits_are_kept(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        steps=4,
        checkpoint={"interval": 1, "keep": 1},
        evaluation={"tasks": ["mmstar"], "interval": 2},
    )
    stood: list[int] = []
    train(recipe, on_checkpoint=stood.append)
    assert stood == [1, 2, 3, 4]
    run = Path(recipe.output)
    assert checkpoint_steps(run) == [2, 4]
    folder = results_folder(run, "onevision", 2)
    folder.mkdir(parents=True)
    result_file(folder, "mmstar").touch()
    prune(run, 4, 1, partial(awaited, recipe, run))
    assert checkpoint_steps(run) == [4]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fails_in_one_line_and_goes_on(recipe: Recipe, child: Forked, kept: list[int], reason: str) -> None:
    code = child.join()
    assert code == StorageError.exit_code, child.error
    assert "earlier checkpoints are untouched" in child.error
    assert reason in child.error
    assert recipe.output in child.error
    assert len(child.error.splitlines()) == 1
    assert checkpoint_steps(recipe.output) == kept
    assert not list((Path(recipe.output) / "checkpoints").glob(".*"))
    for step in kept:
        verify(step_folder(recipe.output, step))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_loses_nothing(
    make_recipe: MakeRecipe, finished: Recipe, small_disk: Path, asynchronous: bool
) -> None:
    settings = {"interval": 2, "keep": 2, "asynchronous": asynchronous}
    recipe = make_recipe(str(small_disk / "run"), steps=4, checkpoint=settings)
    size = sum(path.stat().st_size for path in step_folder(finished.output, 4).iterdir())
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - int(1.5 * size))
    with forked(train, recipe) as child:
        _fails_in_one_line_and_goes_on(recipe, child, [2], "MB are free")
    filler.unlink()
    train(recipe)
    assert curve(recipe.output) == curve(finished.output)


def test_all_ranks_learn_of_a_full_disk(make_recipe: MakeRecipe, small_disk: Path, tmp_path: Path) -> None:
    recipe = make_recipe(str(small_disk / "run"), steps=4, checkpoint={"interval": 2, "keep": 2})
    with (small_disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - 1_000_000)
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    with ExitStack() as stack:
        ranks = [stack.enter_context(forked(train, recipe, Ranks(rank, 2, rank, 2, rendezvous))) for rank in range(2)]
        assert [rank.join() for rank in ranks] == [StorageError.exit_code] * 2, [rank.error for rank in ranks]


def _train_with_small_files(recipe: Recipe) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    train(recipe)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_write_that_fails_half_way_loses_nothing(
    make_recipe: MakeRecipe, finished: Recipe, asynchronous: bool
) -> None:
    recipe = make_recipe(steps=4, checkpoint={"interval": 2, "keep": 2, "asynchronous": asynchronous})
    with forked(_train_with_small_files, recipe) as child:
        _fails_in_one_line_and_goes_on(recipe, child, [], "could not be saved: File too large")
    train(recipe)
    assert curve(recipe.output) == curve(finished.output)
