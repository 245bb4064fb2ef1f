"""Real jobs on a real Slurm, disturbed in every way there is: each ends with the history of the undisturbed run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from benchmarks.slurm.cases import CASES, INTERVAL, SETTINGS, Case, Result, disturb, result, submit
from benchmarks.slurm.lab import Lab
from jobs.place import Place
from jobs.sites import load_site

pytestmark = pytest.mark.slow

AT_ONCE = 5  # cases: on two cores the starts of many ranks take turns, the waits of Slurm do not
Results = dict[str, Future[Result]]


@pytest.fixture(scope="session")
def results(
    lab: Lab, site_file: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Results]:
    """What will be left of each case's run. They run beside each other while tests wait for the first of them.

    A controller that dies forgets what it did in its last seconds. A job that it has just started would start once more
    on nodes where it runs, and Slurm drains those and holds the job: so the controller's own case comes last, alone.
    """
    folder = tmp_path_factory.mktemp("cases")
    place = Place(load_site(site_file), nodes=2)
    undisturbed = submit(lab, place, recipe_file, folder / "undisturbed", *SETTINGS)
    submitting = threading.Lock()  # a submission sets the variables of Slurm's commands for the whole process

    def work(case: Case, after: Sequence[Future[Result]] = ()) -> Result:
        wait(after)
        output = folder / case.name.replace(" ", "-")
        with submitting:
            run = submit(lab, place, recipe_file, output, *SETTINGS, *case.settings)
        began = disturb(case, run)
        undisturbed.wait_end()
        return result(case, run, undisturbed.folder, began)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        *beside, last = CASES
        found = {case.name: pool.submit(work, case) for case in beside}
        yield found | {last.name: pool.submit(work, last, tuple(found.values()))}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_disturbed_run_ends_as_if_nothing_had_happened(case: Case, results: Results) -> None:
    found = results[case.name].result()
    assert not found.missing
    assert not found.doubled
    assert found.difference == 0
    assert found.causes[-1] == "finished"
    assert found.causes[0] in case.causes
    assert found.restarts == (0 if case.causes == ("finished",) else 1)


@pytest.mark.parametrize("name", ["time limit", "USR2", "TERM", "preemption", "controller restarts"])
def test_nothing_is_lost_where_there_is_time_to_save(name: str, results: Results) -> None:
    assert results[name].result().lost == 0


@pytest.mark.parametrize("name", ["rank killed", "batch host dies", "other node dies", "rank hangs"])
def test_a_crash_costs_at_most_the_steps_since_the_checkpoint(name: str, results: Results) -> None:
    assert results[name].result().lost <= INTERVAL
