"""Steps that ranks share: the same output for any number of them, and an interrupted one goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onevision.files import read_json
from onevision.ranks import ALONE, find_ranks
from onevision.steps import run_parts

PARTS = 5
MPIEXEC = Path(sys.executable).with_name("mpiexec")
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from onevision.ranks import find_ranks
from onevision.steps import run_parts
from tests.test_ranks import PARTS, build, finish
ranks = find_ranks()
result = run_parts("test", sys.argv[1], {"seed": 1}, PARTS, build, finish, ranks)
assert ranks.sum(np.array([ranks.rank, 1])).tolist() == [sum(range(ranks.size)), ranks.size]
assert ranks.gather(ranks.rank) == list(range(ranks.size))
assert ranks.local_rank() == ranks.rank  # all are on this node
Path(sys.argv[1] + f".rank{ranks.rank}").write_text(f"{ranks.size} {result.summary} {result.skipped}")
"""


def build(folder: Path, k: int) -> dict[str, Any]:
    (folder / f"square-{k}").write_text(str(k * k))
    return {"square": k * k}


def finish(folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
    return {"sum": sum(row["square"] for row in known)}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "step.json"}


def test_alone_needs_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert find_ranks() is ALONE
    assert ALONE.gather("x") == ["x"] and ALONE.local_rank() == 0
    assert ALONE.sum(np.arange(3)).tolist() == [0, 1, 2]


def test_a_step_of_parts_is_done_once(tmp_path: Path) -> None:
    result = run_parts("test", tmp_path / "out", {"seed": 1}, PARTS, build, finish)
    assert result.summary == {"sum": 30}
    assert run_parts("test", tmp_path / "out", {"seed": 1}, PARTS, build, finish).skipped
    assert not run_parts("test", tmp_path / "out", {"seed": 2}, PARTS, build, finish).skipped
    assert contents(tmp_path / "out") == {f"square-{k}": str(k * k) for k in range(PARTS)}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_step_goes_on_with_the_parts_that_are_missing(tmp_path: Path) -> None:
    made: list[int] = []

    def breaks_at_three(folder: Path, k: int) -> dict[str, Any]:
        made.append(k)
        if k == 3:
            (folder / ".square-3.tmp").touch()
            raise KeyboardInterrupt
        return build(folder, k)

    with pytest.raises(KeyboardInterrupt):
        run_parts("test", tmp_path / "out", {"seed": 1}, PARTS, breaks_at_three, finish)
    assert not (tmp_path / "out").exists()
    made.clear()

    def counted(folder: Path, k: int) -> dict[str, Any]:
        made.append(k)
        return build(folder, k)

    assert run_parts("test", tmp_path / "out", {"seed": 1}, PARTS, counted, finish).summary == {"sum": 30}
    assert made == [3, 4]
    assert not list((tmp_path / "out").glob(".*"))


def test_parts_of_other_inputs_are_not_used(tmp_path: Path) -> None:
    def breaks(folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parts("test", tmp_path / "out", {"seed": 1}, PARTS, build, breaks)
    made: list[int] = []

    def counted(folder: Path, k: int) -> dict[str, Any]:
        made.append(k)
        return build(folder, k)

    run_parts("test", tmp_path / "out", {"seed": 2}, PARTS, counted, finish)
    assert made == list(range(PARTS))


WAITS = """
import sys, time
from pathlib import Path
from onevision.ranks import find_ranks
ranks = find_ranks()
ranks.wait()
if ranks.rank:
    time.sleep(1)
before = time.process_time()
ranks.gather(None)
if not ranks.rank:
    Path(sys.argv[1]).write_text(str(time.process_time() - before))
"""


def test_a_rank_that_waits_sleeps(tmp_path: Path) -> None:
    """A second's wait costs a core far less than a second; asking over and over would cost all of it."""
    place = tmp_path / "seconds"
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-m", "mpi4py", "-c", WAITS, str(place)]
    subprocess.run(command, timeout=120, check=True)
    assert float(place.read_text()) < 0.2


@pytest.mark.parametrize("size", [1, 2, 8])
def test_any_number_of_ranks_leaves_the_same(size: int, tmp_path: Path) -> None:
    alone = run_parts("test", tmp_path / "alone", {"seed": 1}, PARTS, build, finish)
    command = [str(MPIEXEC), "-n", str(size), sys.executable, "-m", "mpi4py", "-c", PROGRAM, str(tmp_path / "out")]
    subprocess.run(command, timeout=120, check=True)
    said = [(tmp_path / f"out.rank{rank}").read_text() for rank in range(size)]
    assert said == [f"{size} {alone.summary} False"] * size
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    record, other = (read_json(folder / "step.json") for folder in (tmp_path / "out", alone.folder))
    assert record | {"seconds": 0} == other | {"seconds": 0}
