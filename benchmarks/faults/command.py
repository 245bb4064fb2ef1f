"""A training job as a person starts it: `python -m jobs train`, with the real launcher, in processes that import torch
themselves. It takes seconds more than `benchmarks.faults.job`, so only the launcher's own part is tried this way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.faults.job import LIMIT_SECONDS, End, Setting, elsewhere_in, orphans
from onevision.recipe import Recipe, save_recipe

ROOT = Path(__file__).parents[2]


def run_command(recipe: Recipe, folder: Path, setting: Setting) -> End:
    """Start the command and stay until it ends. `setting.outside` is done to the ranks once they are there."""
    folder.mkdir(parents=True)
    file, printed = folder / "recipe.yaml", folder / "printed"
    save_recipe(recipe, file)
    places = elsewhere_in(folder / "elsewhere")
    environment = os.environ | places | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "jobs", "train", str(file), f"processes={setting.ranks}", "site=here"]
    with printed.open("wb") as out:
        job = subprocess.Popen(
            command, cwd=folder / "elsewhere" / "here", env=environment, stdout=out, stderr=out, start_new_session=True
        )
    problems, pids = [], []
    try:
        pids = _ranks(Path(recipe.output), setting.ranks, job)
        if setting.outside is not None:
            setting.outside(pids, Path(recipe.output))
        code = job.wait(LIMIT_SECONDS)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        problems.append(f"the command did not end: {error}")
        code = -1
    finally:
        job.kill()
        job.wait()
    problems += orphans({job.pid, *pids})
    shown = printed.read_text(encoding="utf-8", errors="replace")
    lines = [line.removeprefix("error: ") for line in shown.splitlines() if line.startswith("error: ")]
    logs = tuple(path.read_text(encoding="utf-8") for path in sorted((Path(recipe.output) / "log").glob("*.log")))
    ended = Path(recipe.output) / "step.json"
    summary = json.loads(ended.read_text(encoding="utf-8"))["summary"] if ended.exists() else {}
    return End(code, "\n".join(lines), shown, logs, summary, tuple(problems))


def _ranks(run: Path, ranks: int, job: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the ranks, as they say themselves.

    Raises:
        TimeoutError: they did not come.
    """
    end = time.monotonic() + LIMIT_SECONDS
    while job.poll() is None:
        told = [path for rank in range(ranks) for path in (run / "log").glob(f".*/{rank}.json")]
        if len(told) == ranks:
            return [int(json.loads(path.read_text(encoding="utf-8"))["pid"]) for path in told]
        if time.monotonic() > end:
            raise TimeoutError("the ranks did not come")
        time.sleep(0.02)
    return []
