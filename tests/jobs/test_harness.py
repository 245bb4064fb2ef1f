"""Evaluation jobs by tasks: what is asked for, and that a run goes on when its evaluation cannot be queued."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.harness import (
    EvaluationQueue,
    evaluate_tasks,
    release_answered,
    task_input_problems,
    task_run,
    task_work,
)
from jobs.place import Place
from jobs.preflight import Preflight
from jobs.sites import Site
from jobs.train import check_training, train_at
from onevision.errors import InputError
from onevision.evaluation.harness.places import MODELS, TaskRun, result_file, results_folder
from onevision.model.presets import PRESETS
from onevision.recipe import Recipe, recipe_from
from onevision.recipe_evaluation import HELDOUT_TASK, EvaluationRecipe
from onevision.training.checkpoint_files import checkpoint_steps, commit


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 2 and 4, which hold nothing."""
    for step in (2, 4):
        written = tmp_path / "run" / "checkpoints" / f".step_{step}"
        written.mkdir(parents=True)
        (written / "common.pt").write_bytes(b"weights")
        commit(written, tmp_path / "run", step, PRESETS["tiny"], keep=5)
    return tmp_path / "run"


def test_what_the_settings_ask_for(run: Path) -> None:
    recipe = Recipe()
    assert task_run(recipe, run, {"tasks": "mmstar,,ai2d,mmstar"}) == TaskRun(str(run), 4, ("mmstar", "ai2d"))
    assert task_run(recipe, run, {"tasks": "mmstar", "step": "2", "limit": "7"}).step == 2
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    named = {"tasks": "mmstar", "model": "onevision_exported"}
    exported = task_run(recipe, run, named)
    assert exported.exported == str(run / "export")
    (run / "export" / "step.json").write_text('{"summary": {"step": 3}}')  # a checkpoint that is there no more
    assert task_run(recipe, run, named).step == task_run(recipe, run, {**named, "step": "3"}).step == 3
    with pytest.raises(InputError, match="export has the weights of step 3, not 4: make export STEP=4 first"):
        task_run(recipe, run, {**named, "step": "4"})
    work = task_work(recipe, exported, 2)
    assert (work.name, work.nodes, work.needs) == ("evaluate-4-exported", 2, "nodes")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"tasks": ",", "step": "2"}, "tasks=, names no task"),
        ({"tasks": "mm star"}, "'mm star' is not the name of a task"),
        ({"tasks": "onevision_heldout"}, "evaluation.corpus, which is empty"),
        ({"tasks": "mmstar", "model": "hf"}, "model=hf is not one of onevision, onevision_exported"),
        ({"tasks": "mmstar", "model": "onevision_exported"}, "is not an exported folder"),
        ({"tasks": "mmstar", "step": "3"}, "the run has checkpoints of steps: 2, 4"),
        ({"tasks": "mmstar", "step": "0"}, "the run has checkpoints of steps: 2, 4"),
        ({"tasks": "mmstar", "step": "last"}, "step=last is not a number"),
    ],
)
def test_what_cannot_be_asked_for(run: Path, settings: dict[str, str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        task_run(Recipe(), run, settings)
    assert line in str(caught.value)


def test_a_missing_harness_is_told_before_anything_is_trained_or_queued(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.harness.importlib.util.find_spec", lambda name: None)
    asked = recipe_from({"output": str(run), "evaluation": {"tasks": ["mmstar"]}})
    here = Place(Site(name="here", scheduler="none"))
    line = "lmms-eval is not installed: .* -r envs/eval.lock"
    with pytest.raises(InputError, match=line):
        train_at(asked, here)
    with pytest.raises(InputError, match=line):
        evaluate_tasks(asked, run, {"tasks": "mmstar"}, here)
    assert not (run / "log").exists()
    monkeypatch.setattr("jobs.train.preflight", lambda *_: Preflight([], []))
    monkeypatch.setattr("jobs.train.slurm_problems", lambda *_: [])
    (problem,) = check_training(asked, Place(Site(name="test"))).problems
    assert problem.startswith("lmms-eval is not installed")
    assert check_training(asked, Place(Site(name="test", container="/image.sif"))).problems == []
    assert check_training(Recipe(output=str(run)), Place(Site(name="test"))).problems == []


def test_data_of_tasks_that_is_not_there_is_told(tmp_path: Path) -> None:
    asked = EvaluationRecipe(tasks=["mmstar", HELDOUT_TASK], data=str(tmp_path), corpus=str(tmp_path / "corpus"))
    (problem,) = task_input_problems(asked)
    assert problem.startswith(f"evaluation.corpus={tmp_path / 'corpus'} is not a folder")
    assert task_input_problems(asked, {str(tmp_path / "corpus")}) == []
    assert task_input_problems(replace(asked, tasks=[])) == []
    (problem,) = task_input_problems(replace(asked, tasks=["mmstar"], data="/nowhere"))
    assert problem.startswith("evaluation.data=/nowhere is not a folder")


def test_a_checkpoint_is_kept_until_it_has_answered_also_when_its_run_has_ended(run: Path) -> None:
    values = {
        "output": str(run),
        "train": {"steps": 4},
        "checkpoint": {"interval": 2, "keep": 1},
        "evaluation": {"tasks": ["mmstar"], "interval": 2},
    }
    recipe, asked = recipe_from(values), TaskRun(str(run), 2, ("mmstar",))
    release_answered(recipe, asked)  # of a run that trains
    (run / "step.json").touch()
    release_answered(recipe, asked)  # not answered yet
    assert checkpoint_steps(run) == [2, 4]
    for step in (2, 4):
        answered = result_file(results_folder(run, MODELS[0], step), "mmstar")
        answered.parent.mkdir(parents=True)
        answered.touch()
        release_answered(recipe, replace(asked, step=step))
        assert checkpoint_steps(run) == [4]  # the newest one stays


def test_a_run_goes_on_when_its_evaluation_cannot_be_queued(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # there is no Slurm
    values = {
        "output": str(run),
        "train": {"steps": 5},
        "checkpoint": {"interval": 2},
        "evaluation": {"tasks": ["mmstar"], "interval": 4},
    }
    evaluations = EvaluationQueue(recipe_from(values), Site(name="test"))
    for step in (2, 4):
        evaluations(step)
    evaluations.close()
    (line,) = capfd.readouterr().out.splitlines()  # of step 4 alone
    assert line.startswith("an evaluation could not be queued: ")
    assert line.endswith("make eval does it later")

    evaluations = EvaluationQueue(recipe_from(values), Site(name="test"))
    monkeypatch.setattr(sys, "executable", "/bin/false")  # no Python: what is queued is of no matter here
    evaluations.catch_up()
    assert len(evaluations._children) == 1
    job = task_work(Recipe(), TaskRun(str(run), 4, ()), 1).records.job
    job.parent.mkdir(parents=True, exist_ok=True)
    job.touch()
    evaluations.catch_up()
    assert len(evaluations._children) == 1  # it was queued once
    job.unlink()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    evaluations.catch_up()  # which no run ends by
    assert "could not be queued: [Errno 2]" in capfd.readouterr().out
    evaluations.close()
