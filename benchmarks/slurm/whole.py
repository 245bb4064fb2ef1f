"""Whole jobs on the local cluster: many ranks against one process, another number of nodes, the pipeline, the clock."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.slurm.cases import Run, submit
from benchmarks.slurm.lab import Lab, LabError
from jobs.pipeline import run as run_pipeline
from jobs.place import Place
from jobs.sites import HERE, Site, find_site, load_site
from jobs.train import run_resume, train_at
from onevision.files import read_json, write_json
from onevision.recipe import ConceptRecipe, load_recipe, save_recipe
from onevision.training.history import read_metrics

SIXTEEN = ("train.steps=6", "train.global_batch_size=16", "checkpoint.interval=100", "train.hang_seconds=300")
STOP_AT = 3
_SECONDS = 900.0  # that jobs may take


@dataclass(frozen=True)
class Layouts:
    """Losses of one curve, made by 16 ranks up to step `stopped`, then by 4, against those of a single process."""

    stopped: int
    steps: list[int]
    sixteen: float  # largest difference of a loss
    four: float


def sixteen_then_four(lab: Lab, site_file: Path, recipe_file: Path, folder: Path) -> Layouts:
    """Train on 16 nodes, stop in the middle, resume on 4 nodes; and train the same in one process here."""
    site = load_site(site_file)
    run = submit(lab, Place(site, nodes=16), recipe_file, folder / "sixteen", *SIXTEEN)
    run.wait_step(STOP_AT)
    lab.slurm.cancel(run.job_id, "INT")
    run.wait_end()
    stopped = run.step
    run_resume([str(run.folder), "nodes=4", f"site={site_file}"])
    resumed = Run(lab, run.recipe, read_json(run.records.job)["job_id"])
    resumed.wait_end()
    train_at(load_recipe(recipe_file, [*SIXTEEN, "name=single", f"output={folder / 'single'}"]), Place(here()))
    rows = read_metrics(run.folder)
    expected = {row["step"]: row["loss"] for row in read_metrics(folder / "single")}
    differences = {row["step"]: abs(row["loss"] - expected[row["step"]]) for row in rows}
    return Layouts(
        stopped,
        [row["step"] for row in rows],
        max((value for step, value in differences.items() if step <= stopped), default=math.inf),
        max((value for step, value in differences.items() if step > stopped), default=math.inf),
    )


def here() -> Site:
    """This machine, without Slurm."""
    return find_site(HERE)


def pipeline_recipes(recipe_file: Path, folder: Path) -> Path:
    """A folder of recipes, stage 0 to 2 of two steps each, whose corpus, packs and runs stand in `folder`; stage 1.5
    reads a balanced selection.
    """
    recipes = folder / "recipes"
    recipes.mkdir()
    recipe = load_recipe(recipe_file)
    corpus = str(folder / "corpus")
    data = replace(recipe.data, corpus=corpus, packs=str(folder / "packs"))
    evaluation = replace(recipe.evaluation, corpus=corpus, max_new_tokens=1)
    concepts = ConceptRecipe(
        vocabulary=str(folder / "vocabulary"),
        words="corpus",
        min_word_count=1,
        index=str(folder / "concepts"),
        match="substring",
        samples=40,
    )
    selection = replace(data, balanced=str(folder / "balanced"), packs=str(folder / "balanced-packs"))
    before = ""
    for name in ("stage0", "stage1", "stage1_5", "stage2"):
        train = replace(recipe.train, init_from=before, steps=2, global_batch_size=2)
        stage = replace(recipe, name=name, stage=name, output=str(folder / name), train=train)
        read = selection if name == "stage1_5" else data
        save_recipe(replace(stage, data=read, concepts=concepts, evaluation=evaluation), recipes / f"{name}.yaml")
        before = stage.output
    return recipes


def pipeline(lab: Lab, site_file: Path, recipes: Path, nodes: int, *settings: str) -> dict[str, str]:
    """Queue all steps of a folder of recipes, whose runs stand beside it, and wait until none is left; by name how they
    ended.
    """
    run_pipeline([str(recipes), f"nodes={nodes}", f"site={site_file}", *settings])
    jobs = {
        f"{job.comment}:{job.name}": number
        for number, job in lab.slurm.queue().items()
        if Path(job.comment).is_relative_to(recipes.parent)  # other jobs may be queued beside it
    }
    return ends(lab, jobs)


def ends(lab: Lab, jobs: dict[str, int]) -> dict[str, str]:
    """Wait until the accounting says of all jobs how they ended, a moment after they leave the queue; that by name.

    Raises:
        LabError: it took too long.
    """
    until = time.monotonic() + _SECONDS
    while True:
        states = {number: job.state for number, job in lab.slurm.accounting(jobs.values()).items()}
        if len(states) == len(jobs) and not set(states.values()) & {"PENDING", "RUNNING", "REQUEUED", "COMPLETING"}:
            return {name: states[number] for name, number in jobs.items()}
        if time.monotonic() > until:
            raise LabError(f"jobs {jobs} did not end within {_SECONDS:.0f} s: {states}")
        time.sleep(0.5)


def submission_seconds(lab: Lab, site_file: Path, recipe_file: Path, folder: Path) -> tuple[float, float]:
    """Seconds of `python -m jobs train` from the command to the prompt, and of a bare sbatch; the job is cancelled."""
    output = folder / "submission"
    arguments = [str(recipe_file), "nodes=16", f"site={site_file}", "name=submission", f"output={output}", *SIXTEEN]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jobs", "train", *arguments], check=True, capture_output=True)
    whole = time.perf_counter() - began
    lab.slurm.cancel(read_json(output / "log" / "slurm" / "submission.job.json")["job_id"])
    began = time.perf_counter()
    answer = lab.slurm.ask("sbatch", "--parsable", "-N16", "--output=/dev/null", "--wrap=true")
    bare = time.perf_counter() - began
    lab.slurm.cancel(int(answer))
    return whole, bare


def status_seconds(run: Path, folder: Path, count: int = 50) -> float:
    """Seconds of `make status`'s command with `count` copies of a run folder (without its checkpoints), best of three:
    what the machine does beside it is not the command's."""
    for number in range(count):
        copy = folder / "runs" / f"run{number:02d}"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "*_result.pkl"))
        for job in (copy / "log" / "slurm").glob("*.job.json"):
            write_json(job, read_json(job) | {"run": str(copy)})
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "-m", "jobs", "status"], cwd=folder, check=True, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - began)
    if answer.stdout.count("run") < count:
        raise LabError(f"status does not show {count} runs:\n{answer.stdout}")
    return min(seconds)
