"""One local Slurm cluster of 16 nodes for all tests of this folder, and what their jobs train on.

First comes what needs all nodes (test_sixteen.py). Then the disturbed runs of test_cases.py begin, in threads and on
the first nodes, while the other tests use the last four, which are the partition `short`; test_cases.py looks at them
in the end. So Slurm's waits of the one are spent on the other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.slurm.cases import CASES, SETTINGS, Case, Result, Run, disturb, result, submit
from benchmarks.slurm.lab import Lab
from jobs.place import Place
from jobs.sites import load_site
from onevision.recipe import Recipe, save_recipe
from tests.training.conftest import data_values, recipe_values

__all__ = ["data_values", "recipe_values"]


HERE = Path(__file__).parent
FIRST, LAST = HERE / "test_sixteen.py", HERE / "test_cases.py"
AT_ONCE = 4  # cases: on two cores the starts of many ranks take turns, the waits of Slurm do not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.timeout(1200))  # whole jobs, on a machine that may be busy
    mine.sort(key=lambda item: (item.path != FIRST, item.path == LAST))
    items[:] = [*mine, *(item for item in items if HERE not in item.path.parents)]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A cluster of the tests' own, beside that of `make slurm-up`. What a killed test run has left is removed first."""
    missing = [name for name in ("slurmctld", "slurmdbd", "munged", "mariadbd", "ip") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs a local Slurm: {', '.join(missing)} not installed (see `make slurm-up`)")
    if os.geteuid():
        pytest.skip("a local Slurm needs root")
    cluster = Lab("test")
    with Path("/var/tmp/onevision-slurm-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs on one machine take turns
        cluster("down")
        cluster("up")
        yield cluster
        cluster("down")


@pytest.fixture(scope="session")
def site_file(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of the tests' cluster."""
    return lab.site_file(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def last_nodes(lab: Lab, site_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of the four nodes of the partition `short`, node13 to node16, on which no case runs."""
    path = tmp_path_factory.mktemp("short") / "short.yaml"
    text = site_file.read_text(encoding="utf-8")
    for line, own in (
        ("partition: gpu\n", "partition: short\n"),
        ("cpu_partition: cpu\n", "cpu_partition: short\n"),
        ("time_limit: 1-00:00:00\n", "time_limit: 0-00:10:00\n"),
    ):
        assert f"\n{line}" in text
        text = text.replace(f"\n{line}", f"\n{own}")
    path.write_text(text, encoding="utf-8")
    return path


class Disturbed:
    """The cases' runs, beside each other on the first nodes while the tests of this process go on.

    A controller that dies forgets what it did in its last seconds. A job that it has just started would start once more
    on nodes where it runs, and Slurm drains those and holds the job: so the controller's own case comes last, alone.
    """

    def __init__(self, lab: Lab, place: Place, recipe_file: Path, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._lab, self._place, self._recipe_file, self._folder, self._pool = lab, place, recipe_file, folder, pool
        self._undisturbed: Run | None = None
        self._found: dict[str, Future[Result]] = {}

    def begin(self, names: set[str]) -> None:
        """Begin with those of the cases that can run beside others."""
        if names:
            self._undisturbed = self._submit("undisturbed")
        for case in CASES[:-1]:
            if case.name in names:
                self._found[case.name] = self._pool.submit(self._work, case)

    def result(self, name: str) -> Result:
        """What is left of a case's run."""
        last = CASES[-1]
        if name == last.name and name not in self._found:
            wait(self._found.values())
            self._found[name] = self._pool.submit(self._work, last)
        return self._found[name].result()

    def _submit(self, name: str, *settings: str) -> Run:
        output = self._folder / name.replace(" ", "-")
        return submit(self._lab, self._place, self._recipe_file, output, *SETTINGS, *settings)

    def _work(self, case: Case) -> Result:
        assert self._undisturbed is not None
        run = self._submit(case.name, *case.settings)
        began = disturb(case, run)
        self._undisturbed.wait_end()
        return result(case, run, self._undisturbed.folder, began)


@pytest.fixture(scope="session")
def disturbed(
    request: pytest.FixtureRequest,
    lab: Lab,
    site_file: Path,
    recipe_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Disturbed]:
    """The runs of the cases that this session looks at."""
    site = load_site(site_file)
    # Not on the nodes of the other tests, where a job that is queued again would go while its own are cleared away.
    place = Place(replace(site, sbatch={**site.sbatch, "exclude": "node[13-16]"}), nodes=2)
    looked_at = [item for item in request.session.items if item.path == LAST]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = Disturbed(lab, place, recipe_file, tmp_path_factory.mktemp("cases"), pool)
        runs.begin({item.callspec.params["name"] for item in looked_at})
        yield runs
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def recipe_file(
    recipe_values: Callable[..., Recipe], data_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny recipe with a corpus and packs."""
    path = tmp_path_factory.mktemp("recipe") / "stage1_5.yaml"
    save_recipe(recipe_values("", stage="stage1_5"), path)
    return path
