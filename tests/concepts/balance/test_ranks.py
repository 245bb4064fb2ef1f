"""Ranks that share the balance step: the same bytes for any number of them, also when they are killed in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onevision.concepts.balance.index import BalanceIndex
from onevision.corpus.index import CorpusIndex
from onevision.files import read_json
from onevision.recipe import Recipe, save_recipe
from tests.concepts.balance.common import duplicated_recipe
from tests.kills import kill_after_parts

MPIEXEC = Path(sys.executable).with_name("mpiexec")
PARTS = 60
PROGRAM = """
import sys
from onevision.concepts.balance.build import build_balance
from onevision.ranks import find_ranks
from onevision.recipe import load_recipe
build_balance(load_recipe(sys.argv[1]), sys.argv[2], find_ranks(), report=lambda line: None)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small parts, duplicates of both kinds, a quota."""
    folder = tmp_path_factory.mktemp("ranks")
    made: Recipe = duplicated_recipe(
        folder, PARTS, 1, samples=25, quotas=["language.zh=0.4"], duplicate_bits=3, duplicate_similarity=0.95
    )
    save_recipe(made, folder / "recipe.yaml")
    return folder / "recipe.yaml"


def command(recipe: Path, output: Path, ranks: int) -> list[str]:
    """The command that balances; with 0 ranks, without MPI."""
    if not ranks:
        return [sys.executable, "-c", PROGRAM, str(recipe), str(output)]
    start = [str(MPIEXEC), "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    return [*start, "-c", PROGRAM, str(recipe), str(output)]


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "balanced"
    subprocess.run(command(recipe, output, 0), timeout=200, check=True)
    return output


def contents(folder: Path) -> dict[str, bytes | str]:
    """The files of a step; the masters, in which HDF5 writes the time, by their fingerprints, as is its record."""
    files: dict[str, bytes | str] = {path.name: path.read_bytes() for path in folder.glob("*-*.h5")}
    record = read_json(folder / "step.json")
    shown = {"corpus": CorpusIndex.open(folder).fingerprint, "balance": BalanceIndex.open(folder).fingerprint}
    names = {"names": repr(sorted(path.name for path in folder.iterdir()))}
    return files | shown | names | {"summary": repr(record["summary"])}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_leaves_the_same_bytes(recipe: Path, alone: Path, ranks: int, tmp_path: Path) -> None:
    output = tmp_path / alone.parent.name / "balanced"
    subprocess.run(command(recipe, output, ranks), timeout=250, check=True)
    assert contents(output) == contents(alone)
    found = read_json(output / "step.json")["summary"]["balance"]
    assert found["drawn"] == 25 and all(found["duplicates"].values())


@pytest.mark.slow
def test_killed_ranks_leave_what_a_rerun_goes_on_with(recipe: Path, alone: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "balanced", tmp_path / ".balanced.parts"
    for parts in (1, 30):
        kill_after_parts(command(recipe, output, 2), work, parts)
        assert not output.exists()
        assert len(list(work.glob("part-*.json"))) >= parts
        assert list(work.glob("duplicates-*.npy"))
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("part-*.h5")}
    subprocess.run(command(recipe, output, 2), timeout=250, check=True)
    kept = [path for path in output.glob("part-*.h5") if before.get(path.name) == path.stat().st_mtime_ns]
    assert len(kept) >= 30
    assert contents(output) == contents(alone)


@pytest.mark.slow
def test_one_rank_that_is_killed_takes_nothing_along(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """SIGKILL of the second rank alone; mpiexec ends the first."""
    output, work, place = tmp_path / "balanced", tmp_path / ".balanced.parts", tmp_path / "second"
    tell = f"""
import os
from pathlib import Path
from onevision.ranks import find_ranks
if find_ranks().rank == 1:
    Path({str(place)!r}).write_text(str(os.getpid()))
"""
    line = [tell + part if part == PROGRAM else part for part in command(recipe, output, 2)]
    job = subprocess.Popen(line, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while len(list(work.glob("part-*.json"))) < 5 and job.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.0005)
        os.kill(int(place.read_text()), signal.SIGKILL)
        job.wait(60)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    assert job.returncode != 0 and not output.exists()
    subprocess.run(command(recipe, output, 2), timeout=250, check=True)
    assert contents(output) == contents(alone)
