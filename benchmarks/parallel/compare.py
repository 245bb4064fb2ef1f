"""Runs of layouts, and how far they are from the run of one process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.forks import Failed, run_ranks
from benchmarks.parallel.inputs import recipe_for
from benchmarks.parallel.layouts import ONE, Layout
from onevision.data.ledger import Plan, digest
from onevision.errors import Interrupted
from onevision.model.device import Ranks
from onevision.recipe import Recipe
from onevision.training.history import read_metrics
from onevision.training.inputs import open_sources
from onevision.training.loop import train

SECONDS = 1800.0  # that all cases of a layout may take, on a machine that may be busy with something else
TOLERANCE = 1e-5  # of loss and gradient norm, relative; FP32


@dataclass(frozen=True)
class Case:
    """What is trained: a stage with what it freezes, on data of one kind."""

    stage: str
    data: str

    def __str__(self) -> str:
        return f"{self.stage}, {self.data}"


@dataclass(frozen=True)
class Difference:
    """How far a run is from that of one process: the largest relative difference of a step's loss, of its gradient
    norm; and whether steps and their samples are those that were planned, none missing and none twice."""

    loss: float
    grad_norm: float
    planned: bool

    @property
    def met(self) -> bool:
        """Whether it is the same run, but for rounding."""
        return self.planned and max(self.loss, self.grad_norm) <= TOLERANCE


class Comparison:
    """Trains in `folder`, on the inputs below it (`make_inputs`); the run of one process is made once a case."""

    def __init__(self, folder: Path, steps: int = 10) -> None:
        self.folder, self.steps = folder, steps
        self.outputs: dict[tuple[str, Case], Path] = {}  # the last run of a layout
        self._runs = count(1)
        self._references: dict[Case, list[dict[str, Any]]] = {}

    def run(self, layout: Layout, cases: Sequence[Case]) -> dict[Case, Difference]:
        """Train every case in a layout.

        Raises:
            Failed: a rank ended with an error.
        """
        for case in cases:
            self.reference(case)
        recipes = [self._recipe(case, layout) for case in cases]
        run_ranks(layout.ranks, _train_all, recipes, seconds=SECONDS)
        return {case: self._difference(case, recipe) for case, recipe in zip(cases, recipes, strict=True)}

    def resumed(self, before: Layout, after: Layout, case: Case, stop_after: int = 4) -> Difference:
        """Train some steps in one layout, where a signal ends them, and the rest in another.

        Raises:
            Failed: a rank ended with another error.
        """
        self.reference(case)
        first = self._recipe(case, before)
        run_ranks(before.ranks, _train_until, first, stop_after, seconds=SECONDS)
        done = len(read_metrics(first.output))
        if not stop_after <= done < self.steps:
            raise Failed(0, None, f"it was stopped after {done} of {self.steps} steps")
        run_ranks(after.ranks, _train_all, [self._recipe(case, after, Path(first.output))], seconds=SECONDS)
        return self._difference(case, first)

    def _recipe(self, case: Case, layout: Layout, output: Path | None = None) -> Recipe:
        output = output or self.folder / "runs" / str(next(self._runs))
        self.outputs[layout.name, case] = output
        return recipe_for(
            self.folder, output, case.data, case.stage, layout.parallel, layout.performance, steps=self.steps
        )

    def reference(self, case: Case) -> list[dict[str, Any]]:
        """The rows of one process."""
        if case not in self._references:
            recipe = self._recipe(case, ONE)
            run_ranks(1, _train_all, [recipe])
            self._references[case] = read_metrics(recipe.output)
        return self._references[case]

    def _difference(self, case: Case, recipe: Recipe) -> Difference:
        found, expected = read_metrics(recipe.output), self.reference(case)
        sources = open_sources(recipe.data)
        plan = Plan(sources, recipe.seed, recipe.train.global_batch_size)
        planned = [(step, digest(plan.samples(step))) for step in range(1, self.steps + 1)]
        return Difference(
            _largest(found, expected, "loss"),
            _largest(found, expected, "grad_norm"),
            [(row["step"], row["samples_digest"]) for row in found] == planned,
        )


def _largest(found: list[dict[str, Any]], expected: list[dict[str, Any]], key: str) -> float:
    pairs = zip(found, expected, strict=False)
    return max(abs(one[key] - other[key]) / max(abs(other[key]), 1e-12) for one, other in pairs)


def _train_all(recipes: Sequence[Recipe], ranks: Ranks) -> None:
    for recipe in recipes:
        train(recipe, ranks)


def _train_until(recipe: Recipe, steps: int, ranks: Ranks) -> None:
    """Train, until the last rank is sent SIGTERM once so many steps are done."""
    if ranks.rank == ranks.world_size - 1:
        pid = os.getpid()
        if os.fork() == 0:  # a thread would have to wait for the interpreter
            while len(read_metrics(recipe.output)) < steps:
                time.sleep(0.002)
                if os.getppid() != pid:
                    os._exit(0)
            os.kill(pid, signal.SIGTERM)
            os._exit(0)
    with suppress(Interrupted):
        train(recipe, ranks)
