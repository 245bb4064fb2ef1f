"""The report of one run, or of the demo."""

from __future__ import annotations

from pathlib import Path

from jobs.arguments import parse, run_recipe
from jobs.cluster import Work
from jobs.place import place_of, start
from jobs.ranks import quiet
from onevision.recipe import Recipe


def run(arguments: list[str]) -> int:
    """python -m jobs report RUN

    Writes RUN/report.html and RUN/summary.json: curves, throughput, packs, and the answers of its last evaluation.
    """
    path, overrides, own = parse(arguments, "report", "run folder")
    recipe = run_recipe(path, overrides)
    work = Work("report", report_here, (recipe, path), log_folder=path / "log")
    return start(work, place_of(own), lambda report: print(f"open {report}"))


def report_here(recipe: Recipe, run: Path) -> Path:
    """The report job itself."""
    quiet()
    from onevision.report.report import write_report
    from onevision.report.results import ABSENT, PipelineFolders
    from onevision.report.summary import write_summary

    start = Path(recipe.train.init_from) if recipe.train.init_from else run
    folders = PipelineFolders(
        root=run,
        corpus=Path(recipe.data.corpus or ABSENT),
        heldout=Path(recipe.evaluation.corpus or ABSENT),
        packs=Path(recipe.data.packs or ABSENT),
        stage0=start,
        stages={recipe.stage: run},
        before=start / "evaluation",
        after=run / "evaluation",
    )
    write_summary(folders)
    return write_report(folders)
