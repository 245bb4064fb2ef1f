"""Site profiles: what is wrong with one is said at once, and each of the repository's can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.sites import CLUSTERS, Site, find_site, load_site, site_names, time_minutes
from onevision.errors import InputError


@pytest.mark.parametrize("name", site_names())
def test_profiles_of_the_repository_are_valid(name: str) -> None:
    site = find_site(name)
    assert site.name == name
    assert site.scheduler == ("none" if name == "here" else "slurm")


def profile(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("partion: gpu", "unknown key 'partion'; the nearest is 'partition'"),
        ("health: {nvlink: 8}", "unknown key 'health.nvlink'; the nearest is 'health.nvlinks'"),
        ("gpus_per_node: eight", "gpus_per_node"),
        ("scheduler: pbs\ncpus_per_task: 0", "scheduler='pbs' is not one of slurm, none; cpus_per_task=0"),
        ("time_limit: 2 days", "time_limit='2 days' is not of the form D-HH:MM:SS"),
        ("container: image.sif", "must be an absolute path"),
        ("- gpu", "is not a mapping"),
        ("partition: [", "cannot be read"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        load_site(profile(tmp_path, text))
    assert line in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_sbatch_may_have_any_name(tmp_path: Path) -> None:
    site = load_site(profile(tmp_path, "sbatch: {mail-type: FAIL, switches: 1}"))
    assert site.sbatch == {"mail-type": "FAIL", "switches": "1"}


def test_a_missing_profile_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"moon\.yaml does not exist; there are: a800, h100, here, localcluster"):
        find_site("moon")


def test_without_slurm_it_is_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_site().name == "here"


def test_a_cluster_is_recognised_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'ClusterName             = moon'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(InputError, match="no profile .* has cluster_name: moon"):
        find_site()
    monkeypatch.setattr("jobs.sites.CLUSTERS", tmp_path)
    (tmp_path / "mine.yaml").write_text("cluster_name: moon\n")
    assert find_site().name == "mine"


@pytest.mark.parametrize(("text", "minutes"), [("1-00:00:00", 1440), ("04:30:00", 270), ("0:00:01", 1)])
def test_time(text: str, minutes: int) -> None:
    assert time_minutes(text) == minutes


def test_ranks() -> None:
    assert Site(gpus_per_node=8).ranks(16) == 128
    assert Site(gpus_per_node=8, tasks_per_node=1).ranks(16) == 16
    assert Site().ranks(2) == 2
    assert (CLUSTERS / "here.yaml").exists()
