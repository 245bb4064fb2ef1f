"""A part of `make fault-check` with every kind of fault in it, and what the matrix says of a product that errs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults import matrix
from benchmarks.faults.job import KILLED
from benchmarks.faults.lab import Case, Lab, NotHere, Place, Repair
from benchmarks.faults.moments import Injection, Moment, kill
from onevision.errors import InputError

CASES = {case.name: case for case in matrix.all_cases(seed=7)}
# Each is the only one here of a path of the suite, of the runner, or of both; tests/training has what is left out.
CHOSEN = (
    "backward (rank",
    "async save: half a shard",
    "an old one half removed",
    "rank frozen: step 4: save",
    "writer killed: the asynchronous writer",
    "checkpoint damaged: .metadata with one bit changed",
    "checkpoint damaged: all of the run",
    "disk full: a shard cannot grow: file size limit (async)",
    "sample damaged: bits of an image",
    "index cut off: packs-00000.h5",
    "clock jumps: a day back on one of two",
    "local copies: all ranks have them",
    "local copies: of one rank with one bit changed",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("text", CHOSEN)
def test_a_fault_costs_no_step_and_no_bit(lab: Lab, text: str) -> None:
    (case,) = [case for name, case in CASES.items() if text in name]
    result = lab.run(case)
    assert not result.problems, "\n".join(result.problems)
    assert result.code in case.codes


def test_the_rows_are_named_apart_and_can_be_chosen() -> None:
    cases = matrix.all_cases(seed=7)
    assert len(CASES) == len(cases)
    assert sum(case.fault == "rank killed" for case in cases) >= 20
    assert {case.fault for case in matrix.chosen(cases, ["clock", "NaN"])} == {"clock jumps", "batch of NaN"}
    with pytest.raises(InputError, match="only=nothing fits no row; the faults are: rank killed, rank frozen"):
        matrix.chosen(cases, ["clock", "nothing"])


def leave_things(call: object) -> None:
    """A product that writes where it should not, and leaves a process behind."""
    Path("here").write_text("x")
    Path(os.environ["TMPDIR"], "there").write_text("x")
    print("Traceback (most recent call last):", flush=True)


def change_a_row(call: object) -> None:
    """A product that goes on with other weights."""
    for parameter in call.args[0].parts[0].parameters():  # type: ignore[attr-defined]
        parameter.data.mul_(1.1)


def test_what_is_wrong_is_found(lab: Lab) -> None:
    start = Moment("", "onevision.training.loop:open_run", 0)
    later = Moment("", "onevision.training.stepper:Stepper.advance", 3)
    broken = Case(
        "none", "a product that errs", injections={0: [Injection(start, leave_things), Injection(later, change_a_row)]}
    )
    result = lab.run(broken)
    text = "\n".join(result.problems)
    for found in (
        "here was written outside",
        "there was written outside",
        "shown to the user: Traceback",
        "step 4: loss=",
    ):
        assert found in text
    dies = Case("none", "killed where it should not", injections={0: [Injection(replace(later, step=2), kill)]})
    (problem, *_) = lab.run(dies).problems
    assert problem.startswith(f"exit code {KILLED} instead of 0: job run was killed from outside")


@contextmanager
def _not_here(place: Place) -> Iterator[Repair]:
    raise NotHere("no right to mount a small disk")
    yield lambda: None


def test_the_table_and_the_figures(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    result = lab.run(Case("disk full", "before", world=_not_here))
    assert not result.problems and result.outcome == "not run: no right to mount a small disk"
    matrix.show([result])
    assert "not run: no right to mount a small disk" in capsys.readouterr().out
    assert matrix.rows([result]) == []
