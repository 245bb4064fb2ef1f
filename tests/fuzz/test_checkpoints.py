"""Checkpoints hold pickles: one that is not as it was written is never loaded, by any of the ways that load one."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from onevision.convert.exporting import export
from onevision.convert.tensors import TensorInfo, write_megatron
from onevision.errors import DataError, InputError
from onevision.evaluation.accuracy import evaluate
from onevision.fingerprint import value_digest
from onevision.model.presets import PRESETS
from onevision.recipe import Recipe
from onevision.steps import run_step
from onevision.training.checkpoint_files import CHECKPOINT_FILE, commit, find, newest, step_folder, verify, verify_sizes
from onevision.training.inputs import start_weights, verified_start
from onevision.training.loop import train
from tests.forks import forked
from tests.fuzz.harness import Box, campaign
from tests.fuzz.strategies import damaged, damages, texts, values
from tests.training.conftest import data_values, make_recipe, recipe_values

__all__ = ["data_values", "make_recipe", "recipe_values"]

Fuzz = Callable[[Callable[..., None]], Counter[str]]
PICKLED = (".metadata", "common.pt")


class Bomb:
    """Unpickled it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def run_folder(box: Box) -> Path:
    """A run with checkpoints of two steps, of few tensors, made once."""
    run = box.root / "good"
    if not run.exists():
        for step in (1, 2):
            temporary = run / "checkpoints" / f".step_{step}"
            temporary.mkdir(parents=True)
            write_megatron(temporary, {"a": TensorInfo((3, step), torch.float32)}, lambda key: torch.zeros(3, 2))
            commit(temporary, run, step, PRESETS["tiny"], keep=5)
    return run


def started(recipe: Recipe) -> Any:
    """The checkpoint that a run would load to start from."""
    found, _ = start_weights(recipe)
    assert found is not None
    verified_start(recipe, found[0])
    return found


def looked_for(box: Box, run: Path, marker: Path) -> None:
    """Every way to a checkpoint of the run, of which the newer is damaged."""
    folder = step_folder(run, 2)
    older = value_digest(json.loads((step_folder(run, 1) / CHECKPOINT_FILE).read_text()))
    content, _ = box.attempt(lambda: find(folder, verify))
    box.attempt(lambda: find(folder, verify_sizes), count=False)
    recipe = Recipe(model=replace(Recipe().model, preset="tiny"), train=replace(Recipe().train, init_from=str(run)))
    for call in (lambda: newest(run), lambda: started(recipe), lambda: find(run)):
        found, _ = box.attempt(call, errors=(InputError, DataError), count=False)
        if content is None and found is not None:
            assert found[0] == step_folder(run, 1) and value_digest(found[1]) == older
    assert not marker.exists()


@campaign(60, run_folder, which=st.integers(0, 5), changes=damages, bomb=st.sampled_from(["no", "instead", "after"]))
def damaged_checkpoints(box: Box, which: int, changes: list[tuple[str, float, object]], bomb: str) -> None:
    """A file of a checkpoint with damage, or with a pickle in its place that would run code."""
    here = box.folder()
    run = shutil.copytree(run_folder(box), here / "run")
    files = sorted(path for path in step_folder(run, 2).iterdir())
    path = files[which % len(files)]
    charge = pickle.dumps(Bomb(here / "exploded"))
    content = path.read_bytes()
    path.write_bytes({"no": damaged(content, changes), "instead": charge, "after": content + charge}[bomb])
    looked_for(box, run, here / "exploded")


entries = st.dictionaries(
    st.sampled_from([".metadata", "common.pt", "../x", "/etc/passwd", "", "none"]) | texts,
    values | st.fixed_dictionaries({"bytes": values, "digest": values}),
    max_size=3,
)


@campaign(
    50,
    run_folder,
    change=st.dictionaries(st.sampled_from(["step", "architecture", "files", "x"]), values | entries, max_size=2),
    left_out=st.lists(st.sampled_from(["step", "architecture", "files", *PICKLED]), max_size=2),
    raw=st.none()
    | st.sampled_from([b"", b"null", b"[]", b"{", b"[" * 100_000, b"9" * 5000, b'{"a": "\\ud800"}', b"\xff"]),
    signed=st.booleans(),
)
def foreign_lists(box: Box, change: dict[str, Any], left_out: list[str], raw: bytes | None, signed: bool) -> None:
    """A checkpoint.json with other content, also one with the right fingerprint, beside pickles that would run code."""
    here = box.folder()
    run = shutil.copytree(run_folder(box), here / "run")
    folder = step_folder(run, 2)
    content = json.loads((folder / CHECKPOINT_FILE).read_text()) | change
    for name in left_out:
        content.pop(name, None)
        if isinstance(content.get("files"), dict):
            content["files"].pop(name, None)
    for name in PICKLED:
        (folder / name).write_bytes(pickle.dumps(Bomb(here / "exploded")))
    if signed:
        content.pop("fingerprint")
        content = json.loads(json.dumps(content))
        content["fingerprint"] = value_digest(content)
    (folder / CHECKPOINT_FILE).write_bytes(json.dumps(content).encode() if raw is None else raw)
    looked_for(box, run, here / "exploded")


@campaign(
    40,
    content=values | st.fixed_dictionaries({"key": values, "summary": values, "seconds": values}),
    raw=st.none() | st.sampled_from([b"", b"{", b"[" * 100_000, b"\xff", b"9" * 5000]),
)
def step_records(box: Box, content: Any, raw: bytes | None) -> None:
    """A folder whose step.json is not what a step has written."""
    folder = box.folder() / "run" / "out"
    folder.mkdir(parents=True)
    (folder / "step.json").write_bytes(json.dumps(content).encode() if raw is None else raw)
    box.attempt(lambda: run_step("a step", folder, {}, lambda work: {}), folder.parent)


@pytest.mark.parametrize("function", [damaged_checkpoints, foreign_lists, step_records], ids=lambda f: f.__name__)
def test_checkpoints(fuzz: Fuzz, function: Callable[..., None]) -> None:
    fuzz(function)


def _all_ways(recipe: Recipe, other: Recipe, marker: Path) -> None:
    """Train, plant pickles that run code in every checkpoint of the run, and try all that loads one."""
    run = Path(recipe.output)
    train(recipe)
    (run / "step.json").unlink()
    whole = {step: shutil.copytree(step_folder(run, step), run / f"kept-{step}") for step in (1, 2)}

    def plant(step: int, name: str, listed: bool) -> Path:
        folder = step_folder(run, step)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole[step], folder)
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
        if not listed:  # with a list that was made anew and leaves out what is foreign
            content = json.loads((folder / CHECKPOINT_FILE).read_text())
            content["files"] = {key: entry for key, entry in content["files"].items() if key != name}
            content.pop("fingerprint")
            (folder / CHECKPOINT_FILE).write_text(json.dumps(content | {"fingerprint": value_digest(content)}))
        return folder

    asked = replace(recipe, evaluation=replace(recipe.evaluation, corpus=recipe.data.corpus))
    for name in (*PICKLED, "__0_0.distcp"):
        for listed in (True, False):
            folder = plant(2, name, listed)
            with pytest.raises(DataError):
                export(folder, recipe.data, run / "export")
            with pytest.raises(DataError):
                evaluate(asked, str(folder), run / "evaluation")
            with pytest.raises(DataError):
                train(replace(other, train=replace(other.train, init_from=str(folder))))
            assert not marker.exists()
    train(recipe)  # resumes after step 1
    assert not marker.exists()
    verify(step_folder(run, 2))  # made anew
    (run / "step.json").unlink()
    for step in (1, 2):
        plant(step, ".metadata", True)
    with pytest.raises(DataError):
        train(recipe)
    assert not marker.exists()


def test_no_way_that_loads_a_checkpoint_unpickles_an_altered_one(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(steps=2, checkpoint={"interval": 1, "keep": 3, "asynchronous": False})
    other = make_recipe("other", steps=2)
    with forked(_all_ways, recipe, other, tmp_path / "exploded") as child:
        assert child.join(280) == 0, child.error
