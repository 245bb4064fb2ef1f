"""Ranks that share the pack step: the same packs for any number of them, also when they are killed in between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.packing.synthetic import write
from onevision.corpus.hdf5 import seal_file
from onevision.files import read_json
from onevision.packing.index import FILE, PackIndex
from tests.kills import kill_after_parts

MPIEXEC = Path(sys.executable).with_name("mpiexec")
SETTINGS = ["part_samples=2000", "max_patches=26000"]
PARTS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lengths")
    write(folder, PARTS * 2000)
    return folder


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "packs"
    pack = [sys.executable, "-m", "benchmarks.packing.pack", str(corpus), str(output), *SETTINGS]
    subprocess.run(pack, timeout=200, check=True)
    return output


def command(corpus: Path, output: Path, ranks: int, *settings: str) -> list[str]:
    program = ["-m", "mpi4py", "-m", "benchmarks.packing.pack", str(corpus), str(output), *SETTINGS, *settings]
    return [str(MPIEXEC), "-n", str(ranks), sys.executable, *program]


def contents(folder: Path) -> dict[str, bytes | str]:
    """The files of a step; the master, in which HDF5 writes the time, by its fingerprint."""
    parts: dict[str, bytes | str] = {path.name: path.read_bytes() for path in folder.glob("packs-*.h5")}
    overlong = (folder / "overlong.parquet").read_bytes()
    return parts | {"overlong.parquet": overlong, FILE: PackIndex.open(folder).fingerprint}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_leaves_the_same_packs(corpus: Path, alone: Path, ranks: int, tmp_path: Path) -> None:
    subprocess.run(command(corpus, tmp_path / "packs", ranks), timeout=250, check=True)
    assert contents(tmp_path / "packs") == contents(alone)
    record, other = (read_json(folder / "step.json") for folder in (tmp_path / "packs", alone))
    assert record | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.slow
def test_killed_ranks_leave_what_a_rerun_goes_on_with(corpus: Path, alone: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "packs", tmp_path / ".packs.parts"
    for parts in (2, 12):
        kill_after_parts(command(corpus, output, 2), work, parts)
        assert not output.exists()
        assert len(list(work.glob("part-*.json"))) >= parts
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("packs-*.h5")}
    subprocess.run(command(corpus, output, 2), timeout=250, check=True)
    kept = {path.name for path in output.glob("packs-*.h5") if before.get(path.name) == path.stat().st_mtime_ns}
    assert len(kept) >= 12
    assert contents(output) == contents(alone)


def test_one_file_needs_mpi_in_h5py_for_several_ranks(corpus: Path, tmp_path: Path) -> None:
    job = subprocess.run(
        command(corpus, tmp_path / "packs", 2, "single_file=1"), timeout=250, capture_output=True, text=True
    )
    assert job.returncode != 0
    assert "2 ranks need an h5py that was built with MPI" in job.stderr
    assert not (tmp_path / "packs").exists()


PARALLEL = """
import sys
from pathlib import Path
from mpi4py import MPI
sys.path.insert(0, sys.argv[1])
from single import merge_parts
merge_parts(Path(sys.argv[2]), "pack_start", MPI.COMM_WORLD)
"""
PROBE = "import mpi4py.MPI, h5py, sys; sys.exit(not h5py.get_config().mpi)"
DEBIAN = ["/usr/bin/mpiexec", "--oversubscribe", "-n", "3", "/usr/bin/python3", "-c"]
OPEN_MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def parallel_hdf5() -> bool:
    """Whether Debian's Python has an h5py that was built with MPI; it shows itself only under mpiexec."""
    if not Path(DEBIAN[0]).exists():
        return False
    environment = {"PATH": "/usr/bin:/bin", **OPEN_MPI}
    return not subprocess.run([*DEBIAN, PROBE], env=environment, capture_output=True, timeout=60).returncode


def test_ranks_write_one_file_together(alone: Path, tmp_path: Path) -> None:
    """HDF5's mpio under Debian's Open MPI, with three ranks, on the part files that the step left."""
    if not parallel_hdf5():
        pytest.skip("needs Debian's python3-h5py-mpi and python3-mpi4py")
    for path in alone.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    module = Path(sys.modules[PackIndex.__module__].__file__ or "").parent
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), **OPEN_MPI}
    program = [*DEBIAN, PARALLEL, str(module), str(tmp_path / FILE)]
    subprocess.run(program, env=environment, timeout=120, check=True)
    assert not list(tmp_path.glob("packs-*"))
    seal_file(tmp_path / FILE)  # as the step does; Debian's Python has no xxhash
    one, many = PackIndex.open(tmp_path), PackIndex.open(alone)
    for name in ("pack_start", "sample", "tokens", "patches", "attention_cost"):
        assert list(getattr(one, name)) == list(getattr(many, name)), name
    assert one.fingerprint == many.fingerprint
