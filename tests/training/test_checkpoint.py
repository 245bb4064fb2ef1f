"""Checkpoints: complete or not there, the newest good one wins, a full disk loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from onevision.errors import DataError, InputError, StorageError
from onevision.recipe import Recipe
from onevision.training.checkpoint import checkpoint_steps, find, newest, step_folder, verify
from onevision.training.loop import train
from onevision.training.metrics import read_metrics
from tests.forks import forked
from tests.training.test_loop import curve

MakeRecipe = Callable[..., Recipe]


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["__0_0.distcp", "common.pt", ".metadata", "checkpoint.json"])
def test_a_broken_newest_checkpoint_is_skipped(
    make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], None], name: str
) -> None:
    recipe = make_recipe(steps=4)
    train(recipe)
    whole = curve(recipe.output)
    run = Path(recipe.output)
    (run / "step.json").unlink()
    damage(step_folder(run, 4) / name)
    if damage is _flip and name == "checkpoint.json":
        with pytest.raises((DataError, KeyError)):
            verify(step_folder(run, 4))
        return
    found = newest(run)
    assert found is not None
    assert found[1]["step"] == 2
    message = capfd.readouterr().out
    assert "skipping checkpoint" in message
    assert str(step_folder(run, 4)) in message
    with pytest.raises(DataError):
        find(step_folder(run, 4))
    train(recipe)
    assert curve(recipe.output) == whole


def test_when_every_checkpoint_is_broken_the_run_starts_again(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=4)
    train(recipe)
    whole = curve(recipe.output)
    run = Path(recipe.output)
    (run / "step.json").unlink()
    for step in checkpoint_steps(run):
        _truncate(step_folder(run, step) / "__0_0.distcp")
    with pytest.raises(InputError, match="holds no checkpoint"):
        find(run)
    train(recipe)
    assert curve(recipe.output) == whole


def test_the_newest_are_kept(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=7, checkpoint={"interval": 1, "keep": 2})
    train(recipe)
    assert checkpoint_steps(recipe.output) == [6, 7]
    assert not list((Path(recipe.output) / "checkpoints").glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
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


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("room", [20_000_000, 1_000_000])
def test_a_full_disk_loses_nothing(
    make_recipe: MakeRecipe, small_disk: Path, asynchronous: bool, room: int
) -> None:
    train(make_recipe("whole", steps=4))
    settings = {"interval": 2, "keep": 2, "asynchronous": asynchronous}
    recipe = make_recipe(str(small_disk / "run"), steps=4, checkpoint=settings)
    (small_disk / "run").mkdir()
    filler = small_disk / "filler"
    size = 29_000_000  # of one checkpoint
    free = shutil.disk_usage(small_disk).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - size - room)
    with forked(train, recipe) as child:
        code = child.join()
        assert code == StorageError.exit_code, child.error
        assert "earlier checkpoints are untouched" in child.error
        assert str(small_disk) in child.error
        assert len(child.error.splitlines()) == 1
    assert checkpoint_steps(recipe.output) == [2]
    verify(step_folder(recipe.output, 2))
    filler.unlink()
    train(recipe)
    assert curve(recipe.output) == curve(make_recipe("whole").output)
    assert [row["step"] for row in read_metrics(recipe.output)] == [1, 2, 3, 4]
