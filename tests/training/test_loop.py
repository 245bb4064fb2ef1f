"""The loop: it learns, it stops and goes on bit for bit, it refuses what does not fit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from onevision.errors import Busy, DataError, InputError
from onevision.files import read_json
from onevision.recipe import CheckpointRecipe, Recipe, load_recipe, recipe_dict
from onevision.training import checkpoint_files
from onevision.training.checkpoint_files import checkpoint_steps, find, step_folder
from onevision.training.history import read_metrics
from onevision.training.local_copy import LocalCopies
from onevision.training.loop import initialise, train
from onevision.training.run import deciding_values
from tests.forks import forked, wait_for

MakeRecipe = Callable[..., Recipe]
TIMING = (
    "time",
    "step_seconds",
    "data_seconds",
    "tokens_per_second",
    "samples_per_second",
    "mfu",
    "hfu",
    "memory_mb",
)


def curve(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run without what the clock decides."""
    return [{key: value for key, value in row.items() if key not in TIMING} for row in read_metrics(run)]


def test_a_run_learns_and_leaves_everything_a_reader_needs(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=20, checkpoint={"interval": 8, "keep": 2})
    summary = train(recipe)
    rows = read_metrics(recipe.output)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(0 < row["mfu"] <= row["hfu"] for row in rows)
    run = Path(recipe.output)
    for name in ("recipe.yaml", "environment.json", "lineage.json", "metrics.jsonl", "tensorboard", "step.json"):
        assert (run / name).exists(), name
    assert load_recipe(run / "recipe.yaml") == recipe
    assert checkpoint_steps(run) == [16, 20]
    lineage = read_json(run / "lineage.json")
    assert lineage["inputs"]["packs"] == lineage["made_from"]["packs"]["step.json"]["summary"]["fingerprint"]
    local = run.parent / "local"
    local.mkdir()
    (local / "run.json").write_text('{"run": "another", "id": "another"}')
    assert train(replace(recipe, checkpoint=CheckpointRecipe(local=str(local)))) == summary  # done already
    assert (local / "run.json").exists()
    assert len(read_metrics(run)) == 20


def test_a_run_killed_between_its_last_checkpoint_and_its_summary_ends_well(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=2)
    summary = train(recipe)
    (Path(recipe.output) / "step.json").unlink()
    assert train(recipe) == summary | {"resumed_after": 2, "seconds": ANY}
    assert [row["step"] for row in read_metrics(recipe.output)] == [1, 2]


class Killed(BaseException):
    """Raised where a run is to end at once."""


def test_a_whole_checkpoint_is_kept_where_local_copies_and_broken_checkpoints_are_newer(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"interval": 1, "keep": 1, "asynchronous": False, "local": str(tmp_path / "local"), "local_interval": 2}
    recipe = make_recipe(checkpoint=settings)

    def ends_after(original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            original(*args)
            raise Killed

        return call

    monkeypatch.setattr(LocalCopies, "save", ends_after(LocalCopies.save))
    with pytest.raises(Killed):
        train(recipe)
    broken = Path(recipe.output) / "checkpoints" / "step_00000002"
    broken.mkdir()
    monkeypatch.setattr(checkpoint_files, "prune", ends_after(checkpoint_files.prune))
    with pytest.raises(Killed):
        train(recipe)
    assert checkpoint_steps(recipe.output) == [1, 2]


def test_micro_batches_of_two_packs_give_the_same_loss(make_recipe: MakeRecipe) -> None:
    train(make_recipe("one", global_batch_size=4, steps=2))
    train(make_recipe("two", global_batch_size=4, micro_batch_size=2, steps=2))
    one, two = (read_metrics(make_recipe(name).output) for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    assert [row["grad_norm"] for row in two] == pytest.approx([row["grad_norm"] for row in one], rel=1e-4)


def kill_after_rows(recipe: Recipe, *kills: int) -> None:
    """Train, killed a moment after so many rows each time, and at last to the end."""
    chance = random.Random(7)
    for rows in kills:
        with forked(train, recipe) as child:
            wait_for(lambda rows=rows, child=child: len(read_metrics(recipe.output)) >= rows or not child.alive)
            child.join(chance.random() * 0.3)
            child.kill()
    train(recipe)


def test_kill_at_any_moment_then_the_same_command_gives_the_same_curve(make_recipe: MakeRecipe, whole: Recipe) -> None:
    recipe = make_recipe("killed", steps=8)
    kill_after_rows(recipe, 2, 3, 5)
    assert curve(recipe.output) == curve(whole.output)
    assert [row["step"] for row in curve(recipe.output)] == list(range(1, 9))


def test_a_killed_run_in_bf16_has_its_fp32_weights_again(make_recipe: MakeRecipe) -> None:
    train(make_recipe("whole", steps=4, precision="bf16"))
    recipe = make_recipe("killed", steps=4, precision="bf16")
    kill_after_rows(recipe, 2)
    assert curve(recipe.output) == curve(make_recipe("whole").output)


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGUSR2, 75)])
def test_a_signal_saves_and_leaves(make_recipe: MakeRecipe, whole: Recipe, signum: int, exit_code: int) -> None:
    recipe = make_recipe("stopped", steps=8, checkpoint={"interval": 100, "keep": 2})
    with forked(train, recipe) as child:
        wait_for(lambda: len(read_metrics(recipe.output)) >= 2)
        child.signal(signum)
        assert child.join() == exit_code
        assert "and saved in" in child.error
        assert "make resume RUN=" in child.error
    stopped = checkpoint_steps(recipe.output)
    assert len(stopped) == 1
    assert stopped[0] == read_metrics(recipe.output)[-1]["step"] < 8
    train(recipe)
    assert curve(recipe.output) == curve(whole.output)


def test_stages_follow_each_other_without_conversion(make_recipe: MakeRecipe) -> None:
    stage0 = make_recipe("stage0", stage="stage0")
    initialise(stage0)
    stage1 = make_recipe(
        "stage1", stage="stage1", init_from=stage0.output, model={"preset": "tiny", "freeze": ["vision", "language"]}
    )
    train(stage1)
    stage2 = make_recipe("stage2", stage="stage2", init_from=stage1.output)
    train(stage2)
    lineage = read_json(Path(stage2.output) / "lineage.json")
    assert "stage0" in lineage["made_from"]["init_from"]["lineage.json"]["made_from"]["init_from"]["folder"]
    # Stage 1 began where random weights begin, and stage 2 where stage 1 ended.
    first, second = read_metrics(stage1.output), read_metrics(stage2.output)
    assert first[-1]["loss"] < first[0]["loss"]
    assert second[0]["loss"] < first[0]["loss"]


def test_a_run_that_has_begun_does_without_its_start_weights(make_recipe: MakeRecipe) -> None:
    stage0 = make_recipe("stage0", stage="stage0")
    initialise(stage0)
    recipe = make_recipe(init_from=stage0.output)
    train(recipe)
    lineage = read_json(Path(recipe.output) / "lineage.json")
    (Path(recipe.output) / "step.json").unlink()
    shutil.rmtree(step_folder(recipe.output, 6))
    shutil.rmtree(stage0.output)
    assert train(recipe)["resumed_after"] == 4
    assert read_json(Path(recipe.output) / "lineage.json") == lineage
    with pytest.raises(InputError, match="holds no checkpoint"):
        train(make_recipe("other", init_from=stage0.output))


def test_damaged_start_weights_are_refused_before_they_are_loaded(make_recipe: MakeRecipe) -> None:
    stage0 = make_recipe("stage0", stage="stage0")
    initialise(stage0)
    path = step_folder(stage0.output, 0) / "__0_0.distcp"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    recipe = make_recipe(init_from=stage0.output)
    with pytest.raises(DataError, match=r"train\.init_from=.*__0_0\.distcp was altered.*bring it back"):
        train(recipe)
    path.write_bytes(whole)
    assert train(recipe)["resumed_after"] == 0


def test_another_recipe_in_the_same_folder_is_refused(make_recipe: MakeRecipe) -> None:
    train(make_recipe(steps=2))
    with pytest.raises(InputError, match=r"optimizer\.lr=0\.002 \(was 0\.001\).*choose another output"):
        train(make_recipe(steps=2, optimizer={"lr": 2e-3}))


@pytest.mark.usefixtures("ops")
def test_patches_made_on_the_device_change_no_result(make_recipe: MakeRecipe) -> None:
    host, device = make_recipe("host", steps=3), make_recipe("device", steps=3)
    device = replace(device, data=replace(device.data, resize="device"))
    assert deciding_values(device) == deciding_values(host)
    train(host)
    train(device)
    assert curve(device.output) == curve(host.output)


def test_a_checkpoint_of_another_size_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("stage0", stage="stage0")
    initialise(recipe)
    with pytest.raises(InputError, match=r"is a checkpoint of model tiny: vision\.num_layers=3 instead of 24"):
        train(make_recipe("big", init_from=recipe.output, model={"preset": "4b"}))


def test_missing_packs_and_start_weights_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"packs\.h5 does not exist: run `make pack`"):
        train(make_recipe(data={"packs": str(tmp_path / "none")}))
    with pytest.raises(InputError, match="holds no checkpoint: run the step"):
        train(make_recipe(init_from=str(tmp_path / "none")))
    values = recipe_dict(make_recipe())["data"]
    with pytest.raises(InputError, match=r"max_pixels"):
        train(make_recipe(data={**values, "max_pixels": 28 * 28 * 20}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"precision": "fp8"}, "train.precision=fp8 needs a GPU with FP8 units, and there is none here"),
        ({"model": {"preset": "tiny", "backend": "transformer_engine"}}, "Transformer Engine needs a GPU: use"),
        ({"parallel": {"tensor": 2}}, "parallel.tensor=2 x .* does not divide 1 ranks"),
    ],
)
def test_what_this_version_cannot_do_is_refused(make_recipe: MakeRecipe, changes: dict[str, Any], line: str) -> None:
    recipe = make_recipe(**changes)
    with pytest.raises(InputError, match=line):
        train(recipe)
    assert not Path(recipe.output).exists()


def test_a_run_goes_on_with_another_layout(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(parallel={"tensor": 2})
    assert not any(key.startswith("parallel") for key in deciding_values(recipe))


def test_weights_for_fp8_are_drawn_anywhere(make_recipe: MakeRecipe) -> None:
    model = {"preset": "tiny", "backend": "transformer_engine"}
    for name, precision in (("fp8", "fp8"), ("bf16", "bf16")):
        initialise(make_recipe(name, stage="stage0", precision=precision, model=model))
    contents = [find(make_recipe(name).output)[1] for name in ("fp8", "bf16")]
    assert contents[0]["files"]["__0_0.distcp"] == contents[1]["files"]["__0_0.distcp"]


def test_two_processes_cannot_train_in_one_folder(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=50)
    with forked(train, recipe):
        wait_for(lambda: len(read_metrics(recipe.output)) >= 1)
        with pytest.raises(Busy, match="is being written by process"):
            train(make_recipe(steps=50, checkpoint={"interval": 3, "keep": 1}))
        assert load_recipe(Path(recipe.output) / "recipe.yaml") == recipe  # of the one that trains


@pytest.mark.parametrize("bit", [0x80, 0x02, 0x01])
def test_a_damaged_row_of_the_metrics_costs_no_other_row(tmp_path: Path, bit: int) -> None:
    lines = [json.dumps({"step": step, "loss": 1.5}).encode() for step in range(1, 6)]
    lines[1] = lines[1][:1] + bytes([lines[1][1] ^ bit]) + lines[1][2:]  # of the quote before "step"
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"step": 6, "lo']))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 4, 5]
