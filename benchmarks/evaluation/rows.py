"""The rows of `make eval-check`, each from commands as a user gives them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.results import Row
from jobs.attempt import process_of
from onevision.errors import DataError
from onevision.evaluation.harness.places import FOLDER, HELDOUT_DATA, MODELS, read_results, results_folder
from onevision.recipe_evaluation import HELDOUT_TASK
from onevision.steps import step_summary
from onevision.training.checkpoint_files import checkpoint_steps

TASKS = f"tasks={HELDOUT_TASK}"
_SECONDS = 1800.0  # for a command


def check(folder: Path, run: Path) -> Iterator[Row]:
    """All rows, each as soon as it is known."""
    yield from agreement(_copy(run, folder / "agreement"))
    yield from killed(_copy(run, folder / "killed"))
    yield from failing(_copy(run, folder / "failing"))
    yield from during(run, folder / "during")


def agreement(run: Path) -> Iterator[Row]:
    """The same accuracy and the same words by our own evaluation, the plug-in and the exported folder."""
    _jobs("evaluate", run)
    summary = step_summary(run / "evaluation")["categories"].values()
    count = sum(category["n"] for category in summary)
    own = 100 * sum(category["accuracy"] * category["n"] for category in summary) / count
    lines = (run / "evaluation" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    words = dict(enumerate(json.loads(line)["output"] for line in lines))
    yield _row("our own evaluation", own, "% right", count, f"of {count} questions", True)
    _jobs("export", run, f"to={run / 'export'}")
    for model, name in zip(MODELS, ("lmms-eval, the checkpoint", "lmms-eval, the exported folder"), strict=True):
        _jobs("evaluate", run, TASKS, f"model={model}")
        (result,) = _results(run, model)
        percent = result["score"]["percent"]
        yield _row(name, percent, "% right", own, f"{own:g} % right", abs(percent - own) < 1e-3)
        said = _answers(results_folder(run, model, result["step"]))
        other = sum(said[number] != text for number, text in words.items())
        yield _row(f"{name}: other words", other, f"of {count} answers", 0, "0", other == 0)


def killed(run: Path) -> Iterator[Row]:
    """kill -9 in the middle, and the same command again."""
    command = [sys.executable, "-m", "jobs", "evaluate", str(run), TASKS, "site=here"]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = _kill_once_it_answers(run, launcher)
    kept = len(_answers(found))
    yield _row("killed: exit code", launcher.returncode, "", 137, "137", launcher.returncode == 137)
    _jobs("evaluate", run, TASKS)
    (result,) = _results(run, MODELS[0])
    asked = sum(len(path.read_bytes().splitlines()) for path in found.glob("responses.*")) - kept
    goal = f"all but the {kept} that were kept"
    missing = result["answered"] - kept
    yield _row("killed and started again: asked", asked, "questions", missing, goal, asked == missing and kept > 0)


def failing(run: Path) -> Iterator[Row]:
    """A question whose image cannot be decoded, which raises an exception in the model's process."""
    _jobs("evaluate", run, TASKS, "limit=1")
    path = run / FOLDER / HELDOUT_DATA
    table = pq.read_table(path)
    rows = table.to_pylist()
    broken = next(number for number, row in enumerate(rows) if row["images"])
    rows[broken]["images"][0] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    code = _jobs("evaluate", run, TASKS, expected=DataError.exit_code)
    (result,) = _results(run, MODELS[0])
    yield _row("an image is broken: exit code", code, "", 3, "3", code == DataError.exit_code)
    yield _row("an image is broken: failed", result["failed"], "questions", 1, "1", result["failed"] == 1)
    answered = result["answered"]
    others = len(rows) - 1
    yield _row("an image is broken: scored", answered, "questions", others, "the others", answered == others)


def during(run: Path, output: Path) -> Iterator[Row]:
    """Tasks and an interval in the recipe: the checkpoints answer them after training on a machine without Slurm."""
    settings = ["train.steps=4", "checkpoint.interval=1", "checkpoint.keep=1"]
    tasks = [f"evaluation.tasks=[{HELDOUT_TASK}]", "evaluation.interval=2"]
    _jobs("train", run / "recipe.yaml", f"output={output}", *settings, *tasks)
    steps = [result["step"] for result in _results(output, MODELS[0])]
    yield _row("answered while training", len(steps), "checkpoints", 2, "those of steps 2 and 4", steps == [2, 4])
    _jobs("report", output)
    dots = (output / "report.html").read_text(encoding="utf-8").count('class="dot"')
    yield _row("in the report", dots, "dots", 2, "2", dots == 2)


def _row(what: str, value: float, unit: str, reference: float, goal: str, met: bool) -> Row:
    return Row(what, "as it should be", value, unit, "should be", reference, goal, met)


def _copy(run: Path, target: Path) -> Path:
    """A run folder of its own with the checkpoints of `run`."""
    target.mkdir(parents=True)
    shutil.copyfile(run / "recipe.yaml", target / "recipe.yaml")
    (target / "checkpoints").symlink_to(run / "checkpoints")
    return target


def _jobs(job: str, path: Path, *arguments: str, expected: int = 0) -> int:
    """Run a job on this machine; returns its exit code.

    Raises:
        DataError: it is not the expected one.
    """
    command = [sys.executable, "-m", "jobs", job, str(path), *arguments, "site=here"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if answer.returncode != expected:
        last = (answer.stderr.strip() or answer.stdout.strip()).splitlines()[-1:]
        raise DataError(f"{' '.join(command[1:])} ended with {answer.returncode}: {' '.join(last)}")
    return answer.returncode


def _kill_once_it_answers(run: Path, launcher: subprocess.Popen[bytes]) -> Path:
    """SIGKILL the job's process once it has answered some questions and has others left; returns where they are."""
    end = time.monotonic() + _SECONDS
    folder = results_folder(run, MODELS[0], checkpoint_steps(run)[-1])
    while not _answers(folder):
        if launcher.poll() is not None or time.monotonic() > end:
            raise DataError(f"the evaluation of {run} ended with {launcher.poll()} before it could be killed")
        time.sleep(0.005)
    (identity,) = (run / "log").glob(".evaluate-*/0.json")
    os.kill(process_of(identity)[0], signal.SIGKILL)
    launcher.wait(_SECONDS)
    return folder


def _results(run: Path, model: str) -> list[dict[str, Any]]:
    found = list(read_results(run, model))
    if lines := [result for result in found if isinstance(result, str)]:
        raise DataError(*lines)
    return [result for result in found if not isinstance(result, str)]


def _answers(folder: Path) -> dict[int, str]:
    """What stands in whole lines, by document."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("responses.*")))
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return {row["document"]: row["text"] for row in rows if not row["error"]}
