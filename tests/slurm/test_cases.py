"""Real jobs on a real Slurm, disturbed in every way there is: each ends with the history of the undisturbed run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.slurm.cases import CASES, SETTINGS, Case, Result, Run, disturb, result, submit
from benchmarks.slurm.lab import Lab
from jobs.place import Place
from jobs.sites import load_site

pytestmark = pytest.mark.slow

# Cases that run beside each other: on two cores the starts of many ranks take turns, the waits of Slurm do not.
WAVES = (CASES[:5], CASES[5:])
Results = dict[str, Result | Exception]


@pytest.fixture(scope="session")
def results(lab: Lab, site_file: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What is left of each case's run, or why there is nothing."""
    folder = tmp_path_factory.mktemp("cases")
    place = Place(load_site(site_file), nodes=2)
    undisturbed = submit(lab, place, recipe_file, folder / "undisturbed", *SETTINGS)
    found: Results = {}

    def work(case: Case, run: Run) -> None:
        try:
            began = disturb(case, run)
            undisturbed.wait_end()
            found[case.name] = result(case, run, undisturbed.folder, began)
        except Exception as error:  # raised again by the case's test; the other cases go on
            found[case.name] = error

    for wave in WAVES:
        runs = {
            case: submit(lab, place, recipe_file, folder / case.name.replace(" ", "-"), *SETTINGS, *case.settings)
            for case in wave
        }
        with ThreadPoolExecutor(len(wave)) as pool:
            for case, run in runs.items():
                pool.submit(work, case, run)
    return found


def of(results: Results, name: str) -> Result:
    """The result of a case."""
    found = results[name]
    if isinstance(found, Exception):
        raise found
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_disturbed_run_ends_as_if_nothing_had_happened(case: Case, results: Results) -> None:
    found = of(results, case.name)
    assert not found.missing
    assert not found.doubled
    assert found.difference == 0
    assert found.causes[-1] == "finished"
    assert found.causes[0] in case.causes
    assert found.restarts == (0 if case.causes == ("finished",) else 1)


@pytest.mark.parametrize("name", ["time limit", "USR2", "TERM", "preemption", "controller restarts"])
def test_nothing_is_lost_where_there_is_time_to_save(name: str, results: Results) -> None:
    assert of(results, name).lost == 0


@pytest.mark.parametrize("name", ["rank killed", "batch host dies", "other node dies", "rank hangs"])
def test_a_crash_costs_the_steps_since_the_checkpoint(name: str, results: Results) -> None:
    assert 0 < of(results, name).lost < 20
