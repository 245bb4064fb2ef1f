"""Runs a case: disturb a run, look at how it ended, start it again, compare it with the undisturbed run."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import checks
from benchmarks.faults.command import run_command
from benchmarks.faults.inputs import STEPS, make_inputs, recipe_for
from benchmarks.faults.job import Disturbance, End, Setting, initialise_apart, run_job
from benchmarks.faults.moments import Injection
from onevision.recipe import Recipe
from onevision.training.history import read_metrics


@dataclass(frozen=True)
class Place:
    """Where a case happens: a folder of its own, the inputs of all cases (not to be changed), the run folder."""

    folder: Path
    inputs: Path
    run: Path


NOT_RUN = "not run: "
Repair = Callable[[], None]
World = Callable[[Place], AbstractContextManager[Repair]]


@contextmanager
def _as_it_is(place: Place) -> Iterator[Repair]:
    yield lambda: None


@dataclass(frozen=True)
class Case:
    """A fault and what must come of it.

    The disturbed start must end with one of `codes`, and its line (what was shown, where it ends well) must have
    `line` in it, a pattern. Then `world`'s repair is called and the run is started again; it must end well with the
    undisturbed curve. `settings` are overrides of the recipe, where "{folder}" is the folder of the case and
    "{before}" a run to start from.
    """

    fault: str
    moment: str
    ranks: int = 1
    codes: tuple[int, ...] = (0,)
    line: str = ""
    injections: Mapping[int, Sequence[Injection]] = field(default_factory=dict)
    again: Mapping[int, Sequence[Injection]] = field(default_factory=dict)  # at the second start
    outside: Disturbance | None = None
    launcher: bool = True
    command: bool = False  # whether the disturbed start is that of a person, `python -m jobs train`
    settings: tuple[str, ...] = ()
    world: World = _as_it_is
    finished: bool = False  # begin with a copy of the undisturbed run that does not know that it is finished
    reference: tuple[str, ...] = ()  # overrides of the undisturbed run
    check: Callable[[Place, End], list[str]] | None = None  # more that must be so after the disturbed start
    final: Callable[[Place, End], list[str]] | None = None  # and after the last one
    ends_here: bool = False  # it ends the same however often it is started: there is nothing to go on with
    resumed: int | None = None  # the step after which the last start must have gone on
    said: str = ""  # a pattern of what the last start must have shown
    curve: bool = True  # whether the curve must be the undisturbed one
    outcome: str = "undisturbed curve"  # what that is called

    @property
    def name(self) -> str:
        """For `only=`, and for the folder."""
        return f"{self.fault}: {self.moment}"


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    case: Case
    code: int  # of the disturbed start
    line: str  # of the disturbed start
    repeated: int  # steps that were done again
    outcome: str
    seconds: float
    problems: tuple[str, ...]


class NotHere(Exception):
    """This machine does not let a case happen."""


class Lab:
    """The inputs of all cases and their undisturbed runs, made when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe_file = make_inputs(folder / "inputs")
        self._inputs = checks.state(folder / "inputs")
        self._references: dict[tuple[Any, ...], Path] = {}
        self._lock = threading.Lock()

    def undisturbed(self, ranks: int, settings: tuple[str, ...] = ()) -> Path:
        """The run folder of the undisturbed run of so many ranks."""
        with self._lock:
            key = (ranks, *settings)
            if key not in self._references:
                run = self.folder / "undisturbed" / f"{len(self._references)}-ranks{ranks}" / "run"
                end = run_job(self._recipe(run, self._filled(settings)), run.parent / "start", Setting(ranks))
                if end.code or end.problems:
                    raise RuntimeError(f"the undisturbed run ended with {end.code}: {end.line} {end.problems}")
                self._references[key] = run
            return self._references[key]

    def run(self, case: Case) -> Result:
        """Disturb, start again, compare."""
        began = time.monotonic()
        folder = self.folder / re.sub(r"\W+", "-", case.name)
        place = Place(folder, self.folder / "inputs", folder / "run")
        try:
            end, repeated, problems = self._disturbed(case, place)
        except RuntimeError as error:
            return Result(case, 1, "", 0, str(error), time.monotonic() - began, (str(error),))
        except NotHere as reason:
            return Result(case, 0, "", 0, f"{NOT_RUN}{reason}", time.monotonic() - began, ())
        problems += checks.changes(self._inputs, checks.state(self.folder / "inputs"))
        for start in ("disturbed", "again"):
            problems += checks.strays(folder / start / "elsewhere")
        if not problems:
            shutil.rmtree(folder)
        expected = "one line" if end.code and case.ends_here else case.outcome
        found = "; ".join(problems) if problems else expected
        return Result(case, end.code, end.line, repeated, found, time.monotonic() - began, tuple(problems))

    def _disturbed(self, case: Case, place: Place) -> tuple[End, int, list[str]]:
        """How the disturbed start ended, the steps that were done again, and what is not as it should be."""
        run, problems = place.run, []
        reference = self.undisturbed(case.ranks, case.reference)
        settings = self._filled((*case.reference, *case.settings), place.folder)
        place.folder.mkdir(parents=True)
        if case.finished:
            shutil.copytree(reference, run)
            (run / "step.json").unlink()
        with case.world(place) as repair:
            recipe = self._recipe(run, settings)
            reached = last_step(run)
            setting = Setting(case.ranks, case.injections, case.outside, case.launcher)
            start = run_command if case.command else run_job
            last = end = start(recipe, place.folder / "disturbed", setting)
            problems += _problems(case, end)
            if case.check is not None:
                problems += case.check(place, end)
            if end.code and case.ends_here:
                return end, 0, problems
            if end.code:
                reached = last_step(run)
                repair()
                last = run_job(recipe, place.folder / "again", Setting(case.ranks, case.again))
                problems += [*last.problems, *checks.shown_problems(last.shown)]
            if last.code:
                problems.append(f"the last start ended with exit code {last.code}: {last.line}")
                return end, 0, problems
            resumed = last.summary["resumed_after"]
            if case.resumed not in (None, resumed):
                problems.append(f"it went on after step {resumed} instead of {case.resumed}")
            if not re.search(case.said, last.shown):
                problems.append(f"{case.said!r} is not in {last.shown!r}")
            if case.curve:
                problems += checks.curve_problems(run, reference, STEPS)
            problems += checks.leftovers(run, recipe.checkpoint.keep)
            if case.final is not None:
                problems += case.final(place, last)
        return end, max(0, reached - resumed), problems

    def _filled(self, settings: Sequence[str], folder: Path = Path()) -> list[str]:
        """Settings with the folder of the case, and with that of a checkpoint to start from (a model that is spread
        over ranks is not drawn at random), which is made when it is first asked for."""
        before = self.folder / "before"
        if any("{before}" in text for text in settings) and not before.exists():
            initialise_apart(self._recipe(before, ["stage=stage0"]))
        return [text.format(folder=folder, before=before) for text in settings]

    def _recipe(self, run: Path, settings: Sequence[str]) -> Recipe:
        return recipe_for(self.recipe_file, run, settings)


def _problems(case: Case, end: End) -> list[str]:
    problems = [*end.problems, *checks.shown_problems(end.shown)]
    if end.code not in case.codes:
        codes = " or ".join(map(str, case.codes))
        problems.append(f"exit code {end.code} instead of {codes}: {end.line or end.shown[-300:]}")
    if len(end.line.splitlines()) > 1:
        problems.append(f"more than one line: {end.line}")
    text = end.line if end.code else end.shown
    if not re.search(case.line, text):
        problems.append(f"{case.line!r} is not in {text!r}")
    return problems


def last_step(run: Path) -> int:
    """The last step in the metrics of a run; 0 without one."""
    rows = read_metrics(run)
    return int(rows[-1]["step"]) if rows else 0
