"""What a pipeline left in its folders, read once; what is missing or does not fit is a note, not an error."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from onevision.corpus.reader import CorpusReader
from onevision.errors import DataError, InputError, OneVisionError
from onevision.evaluation.accuracy import chance_levels, questions
from onevision.evaluation.harness.places import read_results as read_task_results
from onevision.files import read_json, read_json_lines
from onevision.recipe import Recipe, load_recipe
from onevision.training.bad_steps import NAME
from onevision.training.history import read_metrics

ABSENT = Path("(none)")  # a folder of a pipeline that has none of its kind
CHANCE_SAMPLES = 500_000  # a larger training corpus is not read through for the chance level


@dataclass(frozen=True)
class PipelineFolders:
    """Where a pipeline's steps put their results. A folder need not exist: the report then says that it is missing."""

    root: Path
    corpus: Path
    heldout: Path
    packs: Path
    stage0: Path
    stages: Mapping[str, Path]  # name to run folder, in the order of training
    before: Path  # evaluation of the start weights
    after: Path  # evaluation of the trained weights


@dataclass(frozen=True)
class Stage:
    """A run folder. `rows` are those of metrics.jsonl, `summary` is None while the run has not reached its end."""

    name: str
    folder: Path
    recipe: Recipe
    rows: list[dict[str, Any]]
    summary: dict[str, Any] | None
    environment: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str
    tasks: list[dict[str, Any]] = field(default_factory=list)  # results of lmms-eval, oldest step first


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder: the step's record, and the rows of answers.jsonl."""

    record: dict[str, Any]
    answers: list[dict[str, Any]]

    @property
    def categories(self) -> dict[str, dict[str, Any]]:
        """Accuracy and number of questions of each category."""
        return self.record["summary"]["categories"]


@dataclass(frozen=True)
class Results:
    """All that was found. The step records are those of step.json; `notes` are one line each."""

    folders: PipelineFolders
    corpus: dict[str, Any] | None
    heldout: dict[str, Any] | None
    packs: dict[str, Any] | None
    selection: dict[str, Any] | None  # step.json of the balanced selection that a stage reads, where one does
    selection_packs: dict[str, Any] | None
    start: dict[str, Any] | None  # step.json of stage 0
    start_fingerprint: str
    stages: list[Stage]
    before: Evaluation | None
    after: Evaluation | None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def training_corpus(self) -> CorpusReader | None:
        """The corpus, opened."""
        return self._open("corpus", self.folders.corpus) if self.corpus else None

    @cached_property
    def heldout_corpus(self) -> CorpusReader | None:
        """The held-out corpus, opened."""
        return self._open("held-out corpus", self.folders.heldout) if self.heldout else None

    @cached_property
    def chance(self) -> dict[str, float]:
        """Score of the best constant answers per category; empty where a corpus is missing or too large to be read."""
        training, held_out = self.training_corpus, self.heldout_corpus
        if training is None or held_out is None:
            return {}
        if len(training) > CHANCE_SAMPLES:
            self.notes.append(f"chance levels: not computed for a corpus of {len(training):,} samples")
            return {}
        try:
            return chance_levels(questions(training), questions(held_out))
        except DataError as error:
            self.notes.append(f"chance levels: {error}")
            return {}

    def _open(self, what: str, folder: Path) -> CorpusReader | None:
        try:
            return CorpusReader(folder)
        except OneVisionError as error:
            self.notes.append(f"{what}: {error}")
            return None


def read_results(folders: PipelineFolders) -> Results:
    """Read everything that is there.

    Raises:
        InputError: nothing is there, neither data nor a run nor an evaluation.
    """
    notes: list[str] = []
    data = [("corpus", folders.corpus), ("held-out corpus", folders.heldout), ("packs", folders.packs)]
    corpus, heldout, packs = (_record(folder, what, notes) for what, folder in data)
    start = _record(folders.stage0, "stage 0", notes)
    stages = [stage for name, folder in folders.stages.items() if (stage := _stage(name, folder, notes))]
    selected = next((stage.recipe.data for stage in stages if stage.recipe.data.balanced), None)
    results = Results(
        folders,
        corpus=corpus,
        heldout=heldout,
        packs=packs,
        selection=_record(Path(selected.balanced), "balanced selection", notes) if selected else None,
        selection_packs=_record(Path(selected.packs), "packs of the selection", notes) if selected else None,
        start=start,
        start_fingerprint=_lineage(folders.stage0).get("fingerprint", ""),
        stages=stages,
        before=_evaluation(folders.before, "evaluation before training", notes),
        after=_evaluation(folders.after, "evaluation after training", notes),
        notes=notes,
    )
    if not (results.corpus or results.packs or results.stages or results.after):
        raise InputError(f"{folders.root} holds no finished step to report on: run the pipeline first")
    notes += _contradictions(results)
    return results


def make_command(target: str, folder: Path) -> str:
    """The command line that runs a job on a run folder."""
    quoted = shlex.quote(str(folder))
    if folder.parts[:1] == ("runs",) and quoted == str(folder):  # make cuts a name at blanks
        return f"make {target} RUN={folder.relative_to('runs')}"
    return f".venv/bin/python -m jobs {target} {quoted}"


def _record(folder: Path, what: str, notes: list[str]) -> dict[str, Any] | None:
    """step.json of a folder, or None with a note."""
    if folder == ABSENT:
        notes.append(f"{what}: there is none")
        return None
    if not (folder / "step.json").exists():
        notes.append(f"{what}: missing, {folder} holds no finished step")
        return None
    try:
        return read_json(folder / "step.json")
    except InputError as error:
        notes.append(f"{what}: {error}")
        return None


def _lineage(folder: Path) -> dict[str, Any]:
    path = folder / "lineage.json"
    return read_json(path) if path.exists() else {}


def _stage(name: str, folder: Path, notes: list[str]) -> Stage | None:
    try:
        all_rows = read_metrics(folder)
        rows = [row for row in all_rows if "bad" not in row]  # of the others not every figure is their own
        if len(rows) < len(all_rows):
            notes.append(
                f"{name}: bad steps, whose updates were not applied: {len(all_rows) - len(rows)}; they are left out "
                f"here, and {folder / NAME} has them"
            )
        if not rows:
            notes.append(f"{name}: missing, {folder} holds no training step")
            return None
        recipe = load_recipe(folder / "recipe.yaml")
        done = folder / "step.json"
        summary = read_json(done)["summary"] if done.exists() else None
        environment = read_json(folder / "environment.json")
        lineage = _lineage(folder)
    except InputError as error:
        notes.append(f"{name}: {error}")
        return None
    if summary is None:
        notes.append(
            f"{name}: not finished, step {rows[-1]['step']:,} of {recipe.train.steps:,}; "
            f"continue it with: {make_command('resume', folder)}"
        )
    tasks = []
    for result in read_task_results(folder):
        if isinstance(result, str):
            notes.append(f"{name}: {result}")
        else:
            tasks.append(result)
    return Stage(
        name,
        folder,
        recipe,
        rows,
        summary,
        environment,
        lineage.get("inputs", {}),
        lineage.get("fingerprint", ""),
        tasks,
    )


def _evaluation(folder: Path, what: str, notes: list[str]) -> Evaluation | None:
    record = _record(folder, what, notes)
    if record is None:
        return None
    try:
        return Evaluation(record, read_json_lines(folder / "answers.jsonl"))
    except InputError as error:
        notes.append(f"{what}: {error}; evaluate again")
        return None


def _contradictions(results: Results) -> list[str]:
    """Notes about results that were made from something else than what the folders hold now."""
    found = []

    def compare(who: str, what: str, used: str | None, now: dict[str, Any] | None) -> None:
        if now is not None and used is not None and used != now["summary"]["fingerprint"]:
            found.append(
                f"{who}: was made from other {what} ({used[:12]}) than the folder holds now "
                f"({now['summary']['fingerprint'][:12]}); run it again"
            )

    if results.packs is not None:
        packed = results.selection if results.packs == results.selection_packs else results.corpus
        compare("packs", "samples", results.packs["inputs"].get("corpus"), packed)
    if results.selection is not None:
        compare("balanced selection", "samples", results.selection["inputs"].get("corpus"), results.corpus)
    for stage in results.stages:
        selected = bool(stage.recipe.data.balanced)
        compare(stage.name, "packs", stage.inputs.get("packs"), results.selection_packs if selected else results.packs)
        compare(stage.name, "samples", stage.inputs.get("corpus"), results.selection if selected else results.corpus)
    for name, evaluation in (("before", results.before), ("after", results.after)):
        if evaluation is not None:
            used = evaluation.record["inputs"].get("corpus")
            compare(f"evaluation {name} training", "questions", used, results.heldout)
    if results.after is not None and results.stages and results.stages[-1].name == [*results.folders.stages][-1]:
        asked, reached = results.after.record["summary"].get("step"), results.stages[-1].rows[-1]["step"]
        if isinstance(asked, int) and asked < reached:
            found.append(
                f"evaluation after training: the checkpoint of step {asked:,} was asked, and "
                f"{results.stages[-1].name} went on to step {reached:,}"
            )
    return found
