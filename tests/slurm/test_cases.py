"""Real jobs on a real Slurm, disturbed in ways that differ in who ends them: each ends with the history of the
undisturbed run. `make slurm-check` has the others: signals by hand, a requeue by hand, another node that dies."""

from __future__ import annotations

import pytest

from benchmarks.slurm.cases import CASES, INTERVAL
from tests.slurm.conftest import Disturbed

pytestmark = pytest.mark.slow
TO_SAVE = ("time limit", "preemption", "controller restarts")
CRASHES = ("rank killed", "batch host dies", "rank hangs")
CAUSES = {case.name: case.causes for case in CASES if case.name in TO_SAVE + CRASHES}


@pytest.mark.parametrize("name", CAUSES)
def test_a_disturbed_run_ends_as_if_nothing_had_happened(name: str, disturbed: Disturbed) -> None:
    found = disturbed.result(name)
    assert not found.missing
    assert not found.doubled
    assert found.difference == 0
    assert found.causes[-1] == "finished"
    assert found.causes[0] in CAUSES[name]
    assert found.restarts == (0 if CAUSES[name] == ("finished",) else 1)


@pytest.mark.parametrize("name", TO_SAVE)
def test_nothing_is_lost_where_there_is_time_to_save(name: str, disturbed: Disturbed) -> None:
    assert disturbed.result(name).lost == 0


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_costs_at_most_the_steps_since_the_checkpoint(name: str, disturbed: Disturbed) -> None:
    assert disturbed.result(name).lost <= INTERVAL
