"""sbatch/localcluster: a cluster of nodes that can die, beside another one, and that can be started from any state."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.slurm.lab import SCRIPT, STATE, Lab, LabError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("disturbed")]  # which run beside these tests
NODES = [f"node{i:02d}" for i in range(1, 17)]


@pytest.fixture(scope="module")
def links_of_one(lab: Lab) -> set[str]:
    """The network interfaces of this machine while there is one cluster."""
    return links()


@pytest.fixture(scope="module")
def beside(lab: Lab, links_of_one: set[str]) -> Iterator[Lab]:
    """A second cluster, beside that of the other tests: nodes die here that jobs there do not miss."""
    cluster = Lab(f"{lab.name}-beside")
    cluster("down")
    cluster("up")
    yield cluster
    cluster("down")


def srun(cluster: Lab, *command: str) -> list[str]:
    """Lines that a step printed, sorted."""
    environment = cluster.slurm.environment()
    run = subprocess.run(["srun", "-Q", *command], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return sorted(run.stdout.splitlines())


def answers(cluster: Lab, node: str) -> bool:
    """Whether a step starts on a node."""
    command = ["srun", "-Q", "-w", node, "true"]
    run = subprocess.run(command, env=cluster.slurm.environment(), capture_output=True, timeout=120)
    return run.returncode == 0


def processes(cluster: Lab) -> list[str]:
    """Ids of the processes that are the nodes of a cluster."""
    return subprocess.run(
        ["pgrep", "-f", f"^unshare .*{STATE / cluster.name} "], capture_output=True, text=True
    ).stdout.split()


def kill_everything(cluster: Lab) -> None:
    subprocess.run(["kill", "-KILL", *processes(cluster)], check=True)
    while processes(cluster):
        pass


def links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def test_every_node_is_a_machine_of_its_own(beside: Lab) -> None:
    assert srun(beside, "-N16", "hostname") == NODES
    one = srun(beside, "-N16", "readlink", "/proc/self/ns/net", "/proc/self/ns/pid", "/proc/self/ns/mnt")
    assert len(set(one)) == 3 * 16


def test_every_task_has_a_gpu_of_its_own(beside: Lab) -> None:
    show = "echo $(hostname) $CUDA_VISIBLE_DEVICES"
    found = srun(beside, "-N2", "-w", "node[01-02]", "-n16", "--gpus-per-task=1", "sh", "-c", show)
    assert found == [f"{node} {gpu}" for node in ("node01", "node02") for gpu in range(8)]
    assert sorted(path.name for path in (beside.node_folder("node16") / "dev").iterdir()) == [
        f"nvidia{gpu}" for gpu in range(8)
    ]


def test_tasks_have_the_priority_of_who_submits_them(beside: Lab) -> None:
    assert srun(beside, "-N1", "nice") == subprocess.run(["nice"], capture_output=True, text=True).stdout.split()


def test_two_clusters_run_beside_each_other(lab: Lab, beside: Lab) -> None:
    assert lab.slurm.cluster_name() == f"localcluster-{lab.name}"
    assert beside.slurm.cluster_name() == f"localcluster-{lab.name}-beside"
    assert lab("in", "node01", "hostname", "-I") != beside("in", "node01", "hostname", "-I")


def test_what_the_caller_knows_of_slurm_does_not_matter(beside: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SINFO_FORMAT", "nothing")
    assert "already up" in beside("up")
    assert "node[13-16]" in beside("status")


def test_a_killed_node_is_gone_with_its_processes_and_comes_back(beside: Lab) -> None:
    sleep = subprocess.Popen(
        ["bash", str(SCRIPT), "--name", beside.name, "in", "node16", "sleep", "1000"], stderr=subprocess.DEVNULL
    )
    while beside("in", "node16", "sh", "-c", "pgrep -x sleep || true") == "":
        pass
    address = beside("in", "node16", "cat", "/sys/class/net/eth0/address")
    beside("fail-node", "node16")
    assert sleep.wait(timeout=60) != 0
    with pytest.raises(LabError, match="node16 does not run"):
        beside("in", "node16", "true")
    beside("start-node", "node16")
    assert beside("in", "node16", "cat", "/sys/class/net/eth0/address") == address  # what others still know of it
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not answers(beside, "node16"):  # it is up before it answers
        time.sleep(1)
    assert srun(beside, "-w", "node16", "hostname") == ["node16"]


def test_up_starts_what_is_missing(beside: Lab) -> None:
    beside("kill-node", "node05")
    beside("kill-node", "node07")
    beside("kill-controller")
    said = beside("up")
    assert "starts slurmctld again" in said
    assert "starts node[05,07]" in said
    assert srun(beside, "-w", "node[05,07]", "hostname") == ["node05", "node07"]


def test_the_queue_outlives_the_death_of_everything(beside: Lab) -> None:
    options = ("--parsable", "--hold", "--job-name=survivor", "--output=/dev/null", "--wrap=true")
    job = beside.slurm.ask("sbatch", *options).strip()
    while b"survivor" not in (STATE / beside.name / "state" / "job_state").read_bytes():
        time.sleep(0.05)  # the controller writes it down within five seconds
    kill_everything(beside)
    with pytest.raises(LabError, match="is not up"):
        beside("status")
    assert "goes on with the queue" in beside("up")
    assert int(job) in beside.slurm.queue()
    beside.slurm.cancel(int(job))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kill-node", "node17"], "no node 'node17': they are node01 to node16"),
        (["in", "node01"], "in needs a command after the node"),
        (["--subnet", "10.77", "up"], "--subnet needs three numbers"),
        (["explode"], "no command 'explode'"),
    ],
)
def test_wrong_words_are_refused_in_one_line(beside: Lab, words: list[str], message: str) -> None:
    run = subprocess.run(["bash", str(SCRIPT), "--name", beside.name, *words], capture_output=True, text=True)
    assert run.returncode == 2
    assert message in run.stderr
    assert run.stderr.count("\n") == 1


def test_addresses_in_use_are_refused(lab: Lab) -> None:
    subnet = (STATE / lab.name / "subnet").read_text(encoding="utf-8").strip()
    third = Lab(f"{lab.name}-third")
    with pytest.raises(LabError, match=r"is in use .* choose another"):
        third("--subnet", subnet, "up")
    assert not (STATE / third.name).exists()


def test_down_leaves_nothing_behind(beside: Lab, links_of_one: set[str]) -> None:
    assert links() > links_of_one and processes(beside)
    beside("down")
    assert links() == links_of_one
    assert not (STATE / beside.name).exists()
    assert not processes(beside)
    assert beside("down").strip().endswith("is not up")
