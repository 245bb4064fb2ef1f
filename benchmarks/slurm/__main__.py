"""`make slurm-check`: every disturbance on a real Slurm of 16 nodes, one after the other, as a table and a JSON file.

It makes a cluster of its own beside that of `make slurm-up`, and ends it. The figures and their goals stand in
benchmarks/results/slurm.json. With strict=1 an unmet goal gives exit code 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.results import Row, package_versions, settings, write_results
from benchmarks.slurm.cases import CASES, INTERVAL, SETTINGS, Result, disturb, result, submit
from benchmarks.slurm.lab import Lab
from benchmarks.slurm.whole import (
    Layouts,
    here,
    pipeline,
    pipeline_recipes,
    sixteen_then_four,
    status_seconds,
    submission_seconds,
)
from jobs.pipeline import pipeline_steps
from jobs.place import Place, start
from onevision.errors import InputError, OneVisionError
from onevision.recipe import load_recipe, save_recipe

RECIPES = Path("jobs/recipes/tiny16")
PATH = "slurm"


def main(arguments: list[str]) -> int:
    """Run all cases, or those named case=NAME; see the head comment."""
    strict = settings(arguments, "case", "strict").get("strict") == "1"
    chosen = [text.removeprefix("case=") for text in arguments if text.startswith("case=")]
    if unknown := set(chosen) - {case.name for case in CASES}:
        raise InputError(f"unknown case {unknown.pop()!r}; there are: {', '.join(case.name for case in CASES)}")
    lab = Lab("check")
    lab("up")
    try:
        with tempfile.TemporaryDirectory(prefix="onevision-slurm-check-") as folder:
            return _check(lab, Path(folder), chosen, strict)
    finally:
        lab("down")


def _check(lab: Lab, folder: Path, chosen: list[str], strict: bool) -> int:
    site_file = lab.site_file(folder)
    place = Place(lab.site(folder), nodes=2)
    log = (folder / "check.log").open("w", encoding="utf-8")
    print("input: records, corpus, packs, weights of runs/tiny16", flush=True)
    for step in pipeline_steps(RECIPES, [], {}, nodes=1)[:4]:
        with redirect_stdout(log):
            start(step.work, Place(here()))
    recipe = folder / "stage1_5.yaml"
    save_recipe(load_recipe(RECIPES / recipe.name, ["train.init_from=runs/tiny16/stage0"]), recipe)

    print("undisturbed run", flush=True)
    with redirect_stdout(log):
        undisturbed = submit(lab, place, recipe, folder / "undisturbed", *SETTINGS)
    undisturbed.wait_end()
    results = []
    for case in CASES:
        if chosen and case.name not in chosen:
            continue
        print(f"case: {case.name}", flush=True)
        with redirect_stdout(log):
            run = submit(lab, place, recipe, folder / case.name.replace(" ", "-"), *SETTINGS, *case.settings)
            results.append(result(case, run, undisturbed.folder, disturb(case, run)))
    show(results)
    if chosen:
        return 0 if all(row.whole for row in results) else 1
    print("16 nodes, then 4, against one process", flush=True)
    with redirect_stdout(log):
        layouts = sixteen_then_four(lab, site_file, recipe, folder)
        clock = submission_seconds(lab, site_file, recipe, folder)
        status = status_seconds(undisturbed.folder, folder / "many")
    print("pipeline, and one with broken records", flush=True)
    with redirect_stdout(log):
        whole = Counter(pipeline(lab, site_file, pipeline_recipes(recipe, made(folder, "whole")), 2).values())
        (broken := made(folder, "broken") / "records").mkdir()
        (broken / "records.jsonl").write_text("not a record\n")
        recipes = pipeline_recipes(recipe, broken.parent)
        failing = Counter(pipeline(lab, site_file, recipes, 2, f"data.source={broken}").values())
    rows = figures(results, layouts, clock, status) + pipeline_figures(whole, failing)
    show_figures(rows)
    path = write_results(PATH, rows, _versions(lab))
    for row in rows:
        if not row.met:
            print(f"not met: {row.path}: {row.measure} is {row.value:g} {row.unit}; {row.goal}")
    print(f"{sum(row.met for row in rows)} of {len(rows)} goals met; written to {path}")
    return 1 if strict and not all(row.met for row in rows) else 0


def made(folder: Path, name: str) -> Path:
    """A new folder."""
    (folder / name).mkdir()
    return folder / name


def pipeline_figures(whole: Counter[str], failing: Counter[str]) -> list[Row]:
    """Jobs of the two pipelines: all of one end well; in the other the corpus fails and six jobs are cancelled."""
    ended, cancelled = whole["COMPLETED"], failing["CANCELLED"]
    path = f"{PATH}/pipeline"
    return [
        Row(path, "steps that ended well", ended, "jobs", "steps", 8, "all", ended == whole.total() == 8),
        Row(f"{path} that fails", "dependents cancelled", cancelled, "jobs", "dependents", 6, "all", cancelled == 6),
    ]


def show_figures(rows: list[Row]) -> None:
    """The figures that are not of a single case."""
    table = Table(title="whole jobs")
    for column in ("what", "measure", "value", "beside it", "goal"):
        table.add_column(column)
    names = {f"{PATH}/{case.name}" for case in CASES}
    for row in rows:
        if row.path not in names:
            beside = f"{row.reference}: {row.reference_value:.3g}"
            value = f"{row.value:.3g} {row.unit}" if row.met else f"{row.value:.3g} {row.unit} (not met)"
            table.add_row(row.path.removeprefix(f"{PATH}/"), row.measure, value, beside, row.goal)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def show(results: list[Result]) -> None:
    """The table of the cases."""
    table = Table(title="disturbed runs against the undisturbed one")
    words = ("case", "what was done", "ended as", "loss")
    for column in ("case", "what was done", "ended as", "starts", "lost", "missing", "doubled", "loss", "recovered"):
        table.add_column(column, justify="left" if column in words else "right")
    for row in results:
        same = "same bits" if row.difference == 0 else f"differs by {row.difference:.1e}"
        steps = (str(row.restarts + 1), str(row.lost), str(row.missing), str(row.doubled))
        table.add_row(row.case, row.done, row.causes[0], *steps, same, f"{row.seconds:.0f} s")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def figures(results: list[Result], layouts: Layouts, clock: tuple[float, float], status: float) -> list[Row]:
    """All measures with their goals."""
    rows = []
    for entry in results:
        path, peer, off = f"{PATH}/{entry.case}", "undisturbed run", entry.difference
        few = entry.lost <= INTERVAL
        rows += [
            Row(path, "steps missing", entry.missing, "steps", peer, 0, "0", entry.missing == 0),
            Row(path, "steps doubled", entry.doubled, "steps", peer, 0, "0", entry.doubled == 0),
            Row(path, "difference of a loss", off, "", peer, 0, "0, to the last bit", off == 0),
            Row(path, "steps lost", entry.lost, "steps", "checkpoint interval", INTERVAL, "at most", few),
            Row(path, "recovered after", entry.seconds, "s", "time of a case", 240, "less", entry.seconds < 240),
        ]
    for nodes, value in ((16, layouts.sixteen), (4, layouts.four)):
        path, met = f"{PATH}/{nodes} nodes", value <= 1e-5
        rows.append(Row(path, "difference of a loss", value, "", "one process", 1e-5, "at most 1e-5", met))
    whole, bare = clock
    goal = "less than 5 s more"
    rows.append(Row(f"{PATH}/submission", "train", whole, "s", "bare sbatch", bare, goal, whole - bare < 5))
    rows.append(Row(f"{PATH}/status", "status of 50 runs", status, "s", "goal", 1.0, "less", status < 1))
    return rows


def _versions(lab: Lab) -> dict[str, str]:
    slurm = lab.slurm.ask("sinfo", "--version").split()[-1]
    return {"slurm": slurm} | package_versions("torch", "megatron-core", "submitit")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
