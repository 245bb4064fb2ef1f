"""Options and markers of the whole suite."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from jobs.here import QUIET_THREADS
from tests.forks import PRELOAD, SERVER

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # tests on a GPU run with pytest alone; those that want it cannot be collected there
    pass
else:
    # How long a machine takes, which may be busy, is nobody's mistake.
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
os.environ.update(QUIET_THREADS)  # before torch is loaded; forked processes have it too

TESTS = Path(__file__).parent
LONGEST = ("slurm", "training", "concepts", "ops", "packing", "corpus")
SKIPPED = "skipped, and --no-skips allows that for gpu tests only: "


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails, but for those marked gpu")
    parser.addoption("--fuzz-times", type=int, default=1, help="of tests/fuzz: how many times as many inputs, new ones")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than some seconds; `make test-fast` leaves it out")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make test` shares the folders of tests/ among processes: what a folder's tests share is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class Folders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.split("::")[0].split("/")[1]

    return Folders(config, log)


def pytest_collection_finish() -> None:
    SERVER.set_forkserver_preload(PRELOAD)  # after modules of benchmarks/, which say the like while they are imported
    # What was imported stays: no collection of garbage, of which Megatron asks for one a save, is to look through it.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest folders go first, so that the processes end together; the real Slurm waits a part of its time, and
    # the others run beside it.
    place = {folder: number for number, folder in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.relative_to(TESTS).parts[0], len(place)))
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        for item in items:
            marker = item.get_closest_marker("gpu")
            interpreted = marker and marker.kwargs.get("interpreted") and os.environ.get("TRITON_INTERPRET") == "1"
            if marker and not interpreted:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _refuse_skip(report: Any) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (report.longrepr,)
        report.outcome = "failed"
        report.longrepr = f"{SKIPPED}{reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if item.config.getoption("--no-skips") and not item.get_closest_marker("gpu"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    if collector.config.getoption("--no-skips"):
        _refuse_skip(report)
    return report
