"""What is asked of Slurm, and the batch script; and that the plain scripts are the same."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cluster import ROOT, Work, parameters, script_text
from jobs.data import corpus_work, pack_work
from jobs.scripts import scripts
from jobs.sites import Site, find_site
from jobs.train import train_work
from onevision.recipe import Recipe, layout_problems, load_recipe

pytestmark = pytest.mark.usefixtures("srun")


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit makes no Slurm executor where there is no srun; none is called here."""
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.chdir(ROOT)


def options(text: str) -> dict[str, str]:
    """The #SBATCH lines of a script."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))


def training(nodes: int = 16) -> Work:
    return train_work(load_recipe(ROOT / "jobs/recipes/8b/stage1_5.yaml"), nodes)


def test_a_rank_a_gpu_of_all_nodes() -> None:
    text = script_text(training(), find_site("a800"))
    asked = options(text)
    assert asked["nodes"] == "16"
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    assert asked["distribution"] == "block"
    assert "requeue" in asked
    assert asked["job-name"] == "8b.stage1_5"
    assert asked["comment"] == "runs/8b/stage1_5"
    assert asked["signal"] == "USR2@300"
    (srun,) = [line for line in text.splitlines() if line.startswith("srun") and "submitit" in line]
    assert "--cpus-per-task=8 " in srun
    assert "--kill-on-bad-exit=1 " in srun
    assert "--cpu-bind=cores " in srun


def test_work_without_a_gpu_goes_elsewhere() -> None:
    site = replace(find_site("a800"), cpu_partition="cpu")
    asked = options(script_text(Work("pack", print, (), Path("data/log")), site))
    assert asked["partition"] == "cpu"
    assert asked["nodes"] == asked["ntasks-per-node"] == "1"
    assert "gpus-per-node" not in asked
    assert "exclusive" not in asked
    asked = options(script_text(Work("evaluate", print, (), Path("data/log"), needs="gpu"), site))
    assert asked["gpus-per-node"] == "1"
    assert asked["partition"] == "gpu"


def test_jobs_that_write_beside_each_other_have_names_of_their_own() -> None:
    """Also for Slurm: a job that waits for another of its name would wait for the other's packs."""
    site = Site(scheduler="slurm")
    works = [pack_work(Recipe(), Path("data") / name) for name in ("packs", "more packs")]
    works += [corpus_work(Recipe(), Path("data") / name) for name in ("corpus", "photos")]
    assert [work.name for work in works] == ["pack", "pack.more packs", "corpus", "corpus.photos"]
    assert [options(script_text(work, site))["job-name"] for work in works] == [
        "data.pack",
        "'data.pack.more packs'",
        "data.corpus",
        "data.corpus.photos",
    ]
    assert len({work.records.job for work in works}) == 4


def test_everything_of_a_profile_arrives(tmp_path: Path) -> None:
    nccl = ROOT / "envs/nccl/hdr-infiniband.env"
    site = Site(
        name="x", partition="p", account="a", qos="q", constraint="c", reservation="r", time_limit="02:00:00",
        gpus_per_node=4, cpus_per_task=6, memory_gb=500, exclusive=False, container="/images/x.sif",
        container_binds=["/data"], modules=["cuda/12"], nccl=str(nccl), network_interface="ib0", signal_seconds=200,
        max_restarts=5, sbatch={"mail-type": "FAIL"}, srun=["--mem-bind=local"],
    )  # fmt: skip
    work = replace(training(2), after={7: "pack", 8: "stage1"})
    text = script_text(work, site)
    asked = options(text)
    expected = {
        "partition": "p", "account": "a", "qos": "q", "constraint": "c", "reservation": "r", "time": "120",
        "gpus-per-node": "4", "cpus-per-task": "6", "mem": "500G", "signal": "USR2@200", "mail-type": "FAIL",
        "dependency": "afterok:7:8", "kill-on-invalid-dep": "yes",
    }  # fmt: skip
    assert {name: asked.get(name) for name in expected} == expected
    for line in ("module load cuda/12", "export NCCL_SOCKET_IFNAME=ib0", "export NCCL_NET=IB", "--mem-bind=local"):
        assert line in text
    assert '$? 5 "$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o "%N %t")" runs/8b/stage1_5)' in text
    assert "apptainer exec --nv --bind" in text
    assert "/images/x.sif python -u -m submitit" in text


def test_the_batch_script_is_valid_bash(tmp_path: Path) -> None:
    script = tmp_path / "script"
    for text in [script_text(training(), find_site("a800")), *scripts().values()]:
        script.write_text(text)
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_excluded_nodes_are_asked_for_in_the_next_submission(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "jobs/recipes/8b/stage1_5.yaml", [f"output={tmp_path / 'run'}"])
    work = train_work(recipe, 2)
    assert "exclude" not in parameters(work, Site())
    work.records.folder.mkdir(parents=True)
    work.records.bad_nodes.write_text('{"node07": {"reason": "7 of 8 GPUs", "time": 0}}')
    assert parameters(work, Site())["exclude"] == "node07"


@pytest.mark.parametrize("path", sorted((ROOT / "sbatch").glob("*/*.sbatch")), ids=lambda path: path.stem)
def test_the_plain_scripts_did_not_drift(path: Path) -> None:
    assert path.read_text() == scripts()[path.relative_to(ROOT)], "run `make scripts`"


def test_a_plain_script_is_the_same_from_a_folder_with_a_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "my clone"
    here.mkdir()
    monkeypatch.chdir(here)
    assert scripts() == {path.relative_to(ROOT): path.read_text() for path in (ROOT / "sbatch").glob("*/*.sbatch")}


def test_all_plain_scripts_are_there() -> None:
    assert {path.relative_to(ROOT) for path in (ROOT / "sbatch").glob("*/*.sbatch")} == set(scripts())


def test_a_plain_script_asks_for_what_submitit_asks_for() -> None:
    site = find_site("a800")
    ours = options(scripts()[Path("sbatch/a800/stage1_5.sbatch")])
    theirs = options(script_text(training(), site))
    assert ours.keys() == theirs.keys()
    assert {key for key in ours if ours[key] != theirs[key].replace(f"{ROOT}/", "")} == set()


def test_the_command_in_a_plain_script_has_a_batch_that_its_ranks_can_share() -> None:
    for path, text in scripts().items():
        nodes, settings = re.findall(r"sbatch --nodes=(\d+) \S+\.sbatch(.*)", text)[0]
        recipe = load_recipe(f"jobs/recipes/8b/{path.stem}.yaml", settings.split())
        assert layout_problems(recipe, find_site(path.parts[1]).ranks(int(nodes))) == []


def test_a_plain_script_names_no_place_of_this_machine() -> None:
    for text in scripts().values():
        assert str(ROOT) not in text
        assert "submitit" not in text.replace("without submitit", "")


def test_ranks_of_a_plain_script_need_no_submitit() -> None:
    code = "import sys; sys.modules['submitit'] = None; import jobs.task, jobs.ranks, jobs.starts, jobs.health"
    subprocess.run([sys.executable, "-c", code], check=True)
