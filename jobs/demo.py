"""The whole pipeline on one machine, small: data -> packs -> stage 1 -> 1.5 -> 2 -> evaluation -> export -> report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.cluster import Work
from jobs.data import packed_data
from jobs.here import launch
from jobs.ranks import ready_model
from jobs.train import train_stage
from onevision.concepts.balance.build import build_balance
from onevision.concepts.build import build_concepts
from onevision.concepts.vocabulary import build_vocabulary
from onevision.corpus.build import build_corpus
from onevision.errors import InputError
from onevision.packing.build import build_packs
from onevision.progress import duration
from onevision.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parent / "recipes" / "tiny"
STAGES = ("stage1", "stage1_5", "stage2")
SEED = 0


def run(arguments: list[str]) -> int:
    """python -m jobs demo [key=value ...]

    Makes a corpus of what Python packages ship, trains a tiny model on it in three stages, asks it held-out questions
    before and after, exports it and writes runs/demo/report.html and summary.json. What is done already is skipped;
    an interrupted demo continues. key=value settings apply to the three stages.
    """
    for argument in arguments:
        if "=" not in argument:
            raise InputError(f"demo takes key=value settings, not {argument}")
    began = time.monotonic()
    stage0, *stages = (load_recipe(RECIPES / f"{name}.yaml", arguments) for name in ("stage0", *STAGES))
    root = Path(stage0.output).parent

    _title("1/6 data: source, tokenizer, corpus, concepts, balanced selection, packs")
    launch("data", make_data, stage0, stages, log_folder=root / "log")
    _title("2/6 random weights, and what they answer")
    launch("before", make_before, stage0, log_folder=root / "log")
    for number, recipe in enumerate(stages, start=3):
        _title(f"{number}/6 {recipe.name}: {recipe.train.steps} steps")
        train_stage(recipe, processes=1)
    _title("6/6 held-out questions, export, report")
    summary = launch("report", make_report, stages, root, log_folder=root / "log")

    _show(summary)
    print(f"demo finished in {duration(time.monotonic() - began)}: open {root / 'report.html'}")
    return 0


def make_data(recipe: Recipe, stages: Sequence[Recipe]) -> None:
    """Source, tokenizer, training corpus, held-out corpus, and what each stage reads of them."""
    make_source(recipe)
    build_corpus(recipe.data, Path(recipe.data.corpus))
    for stage in stages:
        if stage.data.balanced:
            build_vocabulary(stage, Path(stage.concepts.vocabulary))
            build_concepts(stage, Path(stage.concepts.index))
            build_balance(stage, Path(stage.data.balanced))
        build_packs(packed_data(stage), Path(stage.data.packs))


def source_work(recipe: Recipe) -> Work:
    """The job that draws the records of the tiny recipes."""
    return Work("source", make_source, (recipe,), log_folder=Path(recipe.output).parent / "log")


def make_source(recipe: Recipe) -> None:
    """Records for training and for the held-out questions, the tokenizer, and the held-out corpus."""
    from onevision.demo.source import build_source
    from onevision.demo.tokenizer import build_tokenizer
    from onevision.model.presets import PRESETS

    train = Path(recipe.data.source)
    build_source(train.parent, SEED)
    build_tokenizer(train, Path(recipe.data.tokenizer), vocab_size=PRESETS[recipe.model.preset].language.vocab_size)
    held_out = replace(recipe.data, source=str(train.parent / "heldout"), corpus=recipe.evaluation.corpus)
    build_corpus(held_out, Path(held_out.corpus))


def make_before(recipe: Recipe) -> None:
    """The stage-0 checkpoint and its answers."""
    ready_model()
    from onevision.evaluation.accuracy import evaluate
    from onevision.training.loop import initialise

    initialise(recipe)
    evaluate(recipe, recipe.output, Path(recipe.output).parent / "before")


def make_report(stages: Sequence[Recipe], root: Path) -> dict[str, Any]:
    """The answers after training, the export, the summary and the reports."""
    ready_model()
    from onevision.convert.exporting import export
    from onevision.evaluation.accuracy import evaluate
    from onevision.report.concept_facts import read_concept_facts
    from onevision.report.concept_page import write_page
    from onevision.report.picture import write_picture
    from onevision.report.report import write_report
    from onevision.report.summary import PipelineFolders, write_summary

    recipe = stages[-1]
    evaluate(recipe, recipe.output, root / "after")
    export(recipe.output, recipe.data, root / "export")
    folders = PipelineFolders(
        root=root,
        corpus=Path(recipe.data.corpus),
        heldout=Path(recipe.evaluation.corpus),
        packs=Path(recipe.data.packs),
        stage0=root / "stage0",
        stages={name: root / name for name in STAGES},
        before=root / "before",
        after=root / "after",
    )
    for stage in stages:
        if stage.data.balanced:
            write_page(read_concept_facts(stage))
    summary = write_summary(folders)
    write_report(folders, root / "report.html")
    write_picture(folders, root / "report.png")
    return summary


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def _show(summary: dict[str, Any]) -> None:
    table = Table(title="held-out questions")
    for column in ("category", "before", "after", "chance", "n"):
        table.add_column(column, justify="left" if column == "category" else "right")
    for category, row in summary["categories"].items():
        shares = ("" if row[key] is None else f"{row[key]:.1%}" for key in ("before", "after", "chance"))
        table.add_row(category, *shares, str(row["n"]))
    print()
    Console().print(table)
