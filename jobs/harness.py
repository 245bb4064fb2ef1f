"""Evaluation by tasks of lmms-eval: of a run's checkpoint or its exported folder, now or when a checkpoint stands."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle

from jobs.cluster import Work, queue
from jobs.numbers import whole
from jobs.place import Place, queued_line, start
from jobs.ranks import ready_model
from jobs.sites import Site
from onevision.errors import InputError, printable
from onevision.evaluation.harness.places import MODELS, TaskRun, awaited
from onevision.files import read_json
from onevision.recipe import Recipe
from onevision.recipe_evaluation import HELDOUT_TASK, EvaluationRecipe, evaluated, task_problems
from onevision.training.checkpoint_files import checkpoint_steps, find, release, step_folder, verify_sizes

SETTINGS = ("tasks", "step", "model", "exported", "limit")  # key=value settings that are not the recipe's
_SECONDS = 120.0  # for queueing the last evaluations of a run that has ended


def evaluate_tasks(recipe: Recipe, run: Path, own: dict[str, str], place: Place) -> int:
    """`python -m jobs evaluate RUN tasks=…`: run the tasks here, or queue them; returns the exit code.

    Raises:
        InputError: a setting is wrong, there is no such checkpoint, or lmms-eval is not installed.
    """
    refuse_without_harness(place.site)
    return start(task_work(recipe, task_run(recipe, run, own), place.nodes), place)


def harness_problems(site: Site) -> list[str]:
    """That lmms-eval is missing, where jobs have the packages of this process: an image has its own."""
    if site.container or importlib.util.find_spec("lmms_eval") is not None:
        return []
    return ["lmms-eval is not installed: .venv/bin/python -m pip install --no-deps -r envs/eval.lock"]


def task_input_problems(evaluation: EvaluationRecipe, waits_for: Collection[str] = frozenset()) -> list[str]:
    """Data of a recipe's tasks that is not on this disk. What earlier jobs make in `waits_for` is not looked at."""
    named = {"evaluation.data": evaluation.data} if evaluation.tasks else {}
    if HELDOUT_TASK in evaluation.tasks:
        named["evaluation.corpus"] = evaluation.corpus
    folders = [Path(folder).absolute() for folder in waits_for]
    return [
        f"{key}={path} is not a folder: the tasks of evaluation.tasks read it"
        for key, path in named.items()
        if path and not Path(path).is_dir() and not any(Path(path).absolute().is_relative_to(each) for each in folders)
    ]


def refuse_without_harness(site: Site) -> None:
    """Do nothing where there is lmms-eval.

    Raises:
        InputError: there is not.
    """
    if problems := harness_problems(site):
        raise InputError(*problems)


def task_run(recipe: Recipe, run: Path, own: dict[str, str]) -> TaskRun:
    """What the settings ask for.

    Raises:
        InputError: a setting is wrong, or there is no such checkpoint.
    """
    tasks = tuple(dict.fromkeys(name for name in own["tasks"].split(",") if name))
    if not tasks:
        raise InputError(f"tasks={own['tasks']} names no task")
    if problems := task_problems(list(tasks), recipe.evaluation.corpus):
        raise InputError("; ".join(problems))
    model = own.get("model") or MODELS[0]
    if model not in MODELS:
        raise InputError(f"model={model} is not one of {', '.join(MODELS)}")
    exported = (own.get("exported") or str(run / "export")) if model == MODELS[1] else ""
    if exported and not (Path(exported) / "config.json").exists():
        raise InputError(
            f"{exported} is not an exported folder (no config.json): run make export first, or give exported=FOLDER"
        )
    wanted = _number(own, "step") if own.get("step") else None
    if exported and (Path(exported) / "step.json").exists():  # of another's folder nothing tells the step
        step = exported_step(Path(exported), wanted)
    else:
        _, content = find(run if wanted is None else step_folder(run, wanted), verify_sizes)
        step = content["step"]
    return TaskRun(str(run), step, tasks, model, exported, _number(own, "limit"))


def exported_step(folder: Path, wanted: int | None) -> int:
    """The step whose weights `make export` wrote into a folder, which need not be the run's newest.

    Raises:
        InputError: it is another one than `wanted` (None: any).
    """
    step = int(read_json(folder / "step.json")["summary"]["step"])
    if wanted not in (None, step):
        raise InputError(f"{folder} has the weights of step {step}, not {wanted}: make export STEP={wanted} first")
    return step


def task_work(recipe: Recipe, asked: TaskRun, nodes: int) -> Work:
    """The evaluation job: a rank a GPU, which share the questions."""
    name = f"evaluate-{asked.step}" + ("-exported" if asked.model == MODELS[1] else "")
    return Work(name, tasks_here, (recipe, asked), Path(asked.run) / "log", needs="nodes", nodes=nodes)


def tasks_here(recipe: Recipe, asked: TaskRun) -> list[dict[str, Any]]:
    """The job itself, in every rank.

    Raises:
        InputError: lmms-eval is not installed.
    """
    refuse_without_harness(Site(name="here"))
    ready_model()
    from onevision.evaluation.harness.run import run_tasks
    from onevision.evaluation.harness.sharing import join

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    share = join(rank, size, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    waited = asked.model == MODELS[0] and awaited(recipe, asked.run, asked.step)
    results = run_tasks(recipe, asked, share, int(os.environ["LOCAL_RANK"]))
    if rank == 0 and waited:
        release_answered(recipe, asked)
    return results


def release_answered(recipe: Recipe, asked: TaskRun) -> None:
    """Let go of a checkpoint that was kept for this evaluation alone, where the run that would has ended."""
    if (Path(asked.run) / "step.json").exists() and not awaited(recipe, asked.run, asked.step):
        release(asked.run, asked.step, recipe.checkpoint.keep)


def evaluate_awaited(recipe: Recipe, place: Place) -> None:
    """On this machine, after training: the tasks of every checkpoint that was kept for them."""
    for step in checkpoint_steps(recipe.output):
        if awaited(recipe, recipe.output, step):
            start(_work(recipe, step), place)


class EvaluationQueue:
    """Queues the evaluation of a checkpoint from within the job that has written it. That takes a process of its own: a
    slow answer of Slurm must not make the other ranks wait. What goes wrong stands in the log, and training goes on."""

    def __init__(self, recipe: Recipe, site: Site) -> None:
        self.recipe, self.site = recipe, site
        self._children: list[subprocess.Popen[bytes]] = []

    def __call__(self, step: int) -> None:
        """Queue it where the recipe wants this step evaluated."""
        if not evaluated(self.recipe.evaluation, step, self.recipe.train.steps):
            return
        try:
            child = subprocess.Popen([sys.executable, "-m", "jobs.harness"], stdin=subprocess.PIPE)
            self._children.append(child)
            assert child.stdin is not None
            with child.stdin as pipe:
                pipe.write(cloudpickle.dumps((self.recipe, self.site, step)))
        except OSError as error:  # no memory for a process, or it has ended already
            print(_not_queued(str(error)), flush=True)

    def catch_up(self) -> None:
        """Queue those of checkpoints that were never queued: the job was killed, or Slurm did not answer."""
        for step in checkpoint_steps(self.recipe.output):
            if awaited(self.recipe, self.recipe.output, step) and not _work(self.recipe, step).records.job.exists():
                self(step)

    def close(self) -> None:
        """Wait until all are queued."""
        for child in self._children:
            try:
                child.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                print(_not_queued("Slurm did not answer"), flush=True)


def queue_evaluation(recipe: Recipe, site: Site, step: int) -> None:
    """Queue the tasks of a recipe for one of its checkpoints, on one node."""
    work = _work(recipe, step)
    print(queued_line(work, queue(work, site), site), flush=True)


def _work(recipe: Recipe, step: int) -> Work:
    asked = TaskRun(recipe.output, step, tuple(recipe.evaluation.tasks))
    return replace(task_work(recipe, asked, 1), minutes=0)


def _not_queued(why: str) -> str:
    return f"an evaluation could not be queued: {printable(why)}; make eval does it later"


def _number(own: dict[str, str], key: str) -> int:
    number = whole(own.get(key) or "0")
    if number is None:
        raise InputError(f"{key}={own[key]} is not a number")
    return number


if __name__ == "__main__":
    try:
        queue_evaluation(*cloudpickle.loads(sys.stdin.buffer.read()))  # from EvaluationQueue, through a pipe
    except Exception as failure:  # submitit has errors of its own, and a run must not end by any of them
        print(_not_queued(str(failure)), flush=True)
