"""The files of envs/ agree with each other, with cpu.lock and with the profiles. No image is built here."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from jobs.nccl import read_nccl
from jobs.sites import CLUSTERS, load_site

ENVS = Path(__file__).parents[1] / "envs"
NCCL = sorted((ENVS / "nccl").glob("*.env"))
CHANGE_SUMS = {"NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE", "NCCL_COLLNET_ENABLE"}  # their order, so the last digits


def lock() -> dict[str, str]:
    """Version of each package in cpu.lock, by its name in small letters with dashes."""
    lines = (ENVS / "cpu.lock").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): number for name, number in pinned}


def kept() -> set[str]:
    """Packages that an image keeps its own version of."""
    match = re.search(r"^kept='(.*?)'", (ENVS / "image-install.sh").read_text(encoding="utf-8"), re.MULTILINE)
    assert match
    return set(match[1].split("|"))


def docker() -> str:
    """The Dockerfile, continued lines joined."""
    return re.sub(r"\\\n\s*", "", (ENVS / "Dockerfile").read_text(encoding="utf-8"))


def sections() -> dict[str, list[str]]:
    """Lines of onevision.def by section; those of the head under ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in (ENVS / "onevision.def").read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def test_both_images_are_the_same() -> None:
    text, parts = docker(), sections()
    base = re.search(r"^FROM (nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3)$", text, re.MULTILINE)
    assert base and parts[""] == ["Bootstrap: docker", f"From: {base[1]}"]
    run = re.search(r"^RUN (.*)$", text, re.MULTILINE)
    assert run and run[1].split(" && ") == parts["post"]
    copy = re.search(r"^COPY (.*) (\S+/)$", text, re.MULTILINE)
    assert copy and parts["files"] == [f"{name} {copy[2]}{name}" for name in copy[1].split()]
    assert all((ENVS / name).exists() for name in copy[1].split())
    environment = re.search(r"^ENV (.*)$", text, re.MULTILINE)
    assert environment and parts["environment"] == [f"export {part}" for part in environment[1].split()]


def test_what_an_image_keeps_is_in_the_lock() -> None:
    assert kept() <= lock().keys()
    assert "torch" in kept()


def test_what_an_image_is_asked_for_is_in_the_lock() -> None:
    tree = ast.parse((ENVS / "image-check.py").read_text(encoding="utf-8"))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert len(loops) == 1
    names = ast.literal_eval(loops[0].iter)
    assert set(names) <= lock().keys()


def test_transformer_engine_is_that_of_pyproject() -> None:
    project = tomllib.loads((ENVS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = project["optional-dependencies"]["gpu"]
    tree = ast.parse((ENVS / "image-check.py").read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    least, below = ast.literal_eval(values["TRANSFORMER_ENGINE"])
    assert requirement == f"transformer-engine[pytorch]>={least[0]}.{least[1]},<{below[0]}.{below[1]}"


@pytest.mark.parametrize("script", ["image-install.sh", "setup.sh", "onevision.def post", "onevision.def environment"])
def test_shell_is_well_formed(script: str) -> None:
    name, _, section = script.partition(" ")
    text = "\n".join(sections()[section]) if section else (ENVS / name).read_text(encoding="utf-8")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def run_install(tmp_path: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    """image-install.sh in an "image" whose Python is that of the tests. Nothing is downloaded: all is there."""
    small = tmp_path / "small.lock"
    small.write_text("# a comment\n" + "".join(f"{name}=={version(name)}\n" for name in packages))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(pytest.__file__).parents[1]),
        "PYTHONNOUSERSITE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_CONSTRAINT": "/no/such/file",  # as an image has one that must not count
    }
    command = ["bash", str(ENVS / "image-install.sh"), str(small), str(tmp_path / "onevision")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_install_leaves_torch_alone(tmp_path: Path) -> None:
    answer = run_install(tmp_path, "torch", "numpy", "xxhash")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "onevision" / "bin" / "python").exists()
    assert "xxhash" in answer.stdout
    assert "torch" not in answer.stdout  # not even asked for


@pytest.mark.parametrize("path", NCCL, ids=lambda path: path.stem)
def test_variables_for_communication_change_no_sum(path: Path) -> None:
    values = read_nccl(path)
    assert values
    assert not CHANGE_SUMS & values.keys()


def test_profiles_name_files_that_exist() -> None:
    sites = [load_site(path) for path in sorted(CLUSTERS.glob("*.yaml"))]
    named = {site.nccl for site in sites if site.nccl}
    assert named <= {f"envs/nccl/{path.name}" for path in NCCL}
    assert all(site.nccl for site in sites if site.scheduler == "slurm")


@pytest.mark.parametrize(
    ("name", "mib", "fp8", "nvlinks"), [("a800", 81920, False, 8), ("h100", 81559, True, 18)]
)
def test_the_chips_of_the_profiles(name: str, mib: int, fp8: bool, nvlinks: int) -> None:
    site = load_site(CLUSTERS / f"{name}.yaml")
    assert site.gpu_memory_gb == round(mib * 2**20 / 1e9, 1)  # as nvidia-smi reports it
    assert (site.gpu_type, site.fp8, site.health.nvlinks) == (name.upper(), fp8, nvlinks)
    assert site.ranks(16) == 128


def test_the_readme_names_every_file() -> None:
    text = (ENVS / "README.md").read_text(encoding="utf-8")
    for path in ENVS.iterdir():
        if path.is_file() and path.name != "README.md":
            assert f"`{path.name}`" in text
