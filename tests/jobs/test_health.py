"""Node health: parsers of nvidia-smi's output, the checks of a node, the verdict, and the all-reduce over real ranks.

The outputs of nvidia-smi are written after its manual page and published examples. None was seen on a real A800 or
H100: that a real one is read right is unproven.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jobs import allreduce, health
from jobs.health import HealthError, Needed, verdict
from jobs.sites import CLUSTERS, load_site
from onevision.errors import InputError, OneVisionError
from tests.forks import forked

A800, H100 = "NVIDIA A800-SXM4-80GB", "NVIDIA H100 80GB HBM3"


def gpu_list(name: str, count: int = 8) -> str:
    """`nvidia-smi -L`."""
    return "".join(f"GPU {i}: {name} (UUID: GPU-6968dfc2-d444-d92c-c36b-6abe53445c{i:02x})\n" for i in range(count))


def link_list(name: str, links: int, speed: str, inactive: dict[int, Sequence[int]] | None = None) -> str:
    """`nvidia-smi nvlink -s`."""
    lines = []
    for index in range(8):
        lines.append(f"GPU {index}: {name} (UUID: GPU-6968dfc2-d444-d92c-c36b-6abe53445c{index:02x})")
        for link in range(links):
            off = link in (inactive or {}).get(index, ())
            lines.append(f"\t Link {link}: {'<inactive>' if off else speed + ' GB/s'}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an nvidia-smi before the others that prints the given outputs, by the beginning of its first argument."""

    def install(outputs: dict[str, str], exit_code: int = 0) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        cases = []
        for number, (argument, text) in enumerate(outputs.items()):
            (folder / f"{number}.txt").write_text(text)
            cases.append(f"{argument}*) cat {folder}/{number}.txt; exit {exit_code};;")
        script = folder / "nvidia-smi"
        script.write_text("#!/bin/sh\ncase $1 in\n" + "\n".join(cases) + "\nesac\nexit 3\n")
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return install


def outputs(name: str, count: int, speed: str, **changed: str) -> dict[str, str]:
    """All that is asked of nvidia-smi on a good node of eight GPUs."""
    size = {"A": 81920, "H": 81559}[name[7]]
    good = {
        "list": gpu_list(name),
        "memory": "".join(f"{i}, {name}, {size}, 0, [N/A]\n" for i in range(8)),
        "rows": "".join(f"GPU-6968dfc2-d444-d92c-c36b-6abe53445c{i:02x}, No, No\n" for i in range(8)),
        "apps": "",
        "links": link_list(name, count, speed),
    } | changed
    arguments = ("-L", "--query-gpu=", "--query-remapped-rows=", "--query-compute-apps=", "nvlink")
    return dict(zip(arguments, good.values(), strict=True))


@pytest.mark.parametrize(("name", "links", "speed"), [(A800, 8, "25"), (H100, 18, "26.562")])
def test_a_good_node_has_no_problem(smi: Any, name: str, links: int, speed: str) -> None:
    smi(outputs(name, links, speed))
    problems, measured = health.check_gpus(Needed(gpus=8, nvlinks=links), "node01")
    assert problems == []
    assert measured["gpus"] == 8
    assert measured["gpu"] == [name]
    assert measured["nvlinks"] == [links]
    assert measured["gpu_memory_mib"] == [81920 if name == A800 else 81559]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"list": gpu_list(A800, 7)}, "7 of 8 GPUs answer nvidia-smi"),
        (
            {"memory": f"0, {A800}, 81920, 0, [N/A]\n3, {A800}, 81920, 2, [N/A]\n"},
            "GPU 3 has uncorrected ECC errors: 2",
        ),
        ({"memory": f"3, {A800}, 81920, [Unknown Error], No\n"}, "GPU 3 has uncorrected ECC errors: [Unknown Error]"),
        (
            {"memory": "1, Tesla V100-SXM2-32GB, 32768, 0, Yes\n"},
            "GPU 1 has memory pages to be retired (Yes): it needs a reset",
        ),
        ({"rows": "GPU-ab, Yes, No\n"}, "GPU-ab has memory rows to be remapped (Yes): it needs a reset"),
        ({"rows": "GPU-ab, 1, 0\n"}, "GPU-ab has memory rows to be remapped (1): it needs a reset"),
        ({"rows": "GPU-ab, No, Yes\n"}, "GPU-ab could not remap a memory row (Yes): it needs to be replaced"),
        ({"apps": "4711, 71680, python, -c\n"}, "process 4711 (python, -c) holds 71680 MiB of a GPU"),
        ({"links": link_list(A800, 8, "25", {5: (2, 3)})}, "GPU 5 has 6 of 8 NVLinks"),
        ({"links": link_list(A800, 8, "25").replace("Link 7: 25", "Link 7: 0", 1)}, "GPU 0 has 7 of 8 NVLinks"),
        ({"links": ""}, "no GPU of this node has NVLinks, 8 are needed"),
    ],
)
def test_a_bad_gpu_is_named(smi: Any, changed: dict[str, str], problem: str) -> None:
    smi(outputs(A800, 8, "25", **changed))
    assert health.check_gpus(Needed(gpus=8, nvlinks=8), "node01")[0] == [problem]


def test_what_an_old_or_small_gpu_does_not_know_is_no_problem(smi: Any) -> None:
    rows = "GPU-ab, [N/A], [N/A]\n"
    smi(outputs(A800, 8, "25", memory="0, Tesla T4, 15360, [N/A], [Not Supported]\n", rows=rows))
    assert health.check_gpus(Needed(gpus=8), "node01")[0] == []


def test_processes_that_may_be_there_are_only_reported(smi: Any) -> None:
    smi(outputs(A800, 8, "25", apps="4711, 71680, python\n4712, 12, dcgm\n4713, [N/A], x\n"))
    problems, measured = health.check_gpus(Needed(gpus=8, exclusive=False), "node01")
    assert problems == []
    assert measured["gpu_processes"] == ["4711 71680 MiB python", "4712 12 MiB dcgm", "4713 [N/A] MiB x"]
    assert health.strays("4712, 12, dcgm\n4713, [N/A], x\n", exclusive=True)[0] == []
    assert health.strays("No running processes found\n", exclusive=True) == ([], {"gpu_processes": []})


def test_a_driver_that_does_not_answer(smi: Any) -> None:
    line = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    smi({"-L": line + "\n"}, exit_code=9)
    problems, _ = health.check_gpus(Needed(gpus=8), "node01")
    assert problems == [f"nvidia-smi -L: {line}", "0 of 8 GPUs answer nvidia-smi"]


def test_devices_are_counted_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for number in range(7):
        (tmp_path / f"node02-nvidia{number}").touch()
    needed = Needed(gpus=7, gpu_devices=f"{tmp_path}/{{node}}-nvidia[0-7]")
    problems, measured = health.check_gpus(needed, "node02")
    assert problems == []
    assert measured["gpus"] == 7
    problems, _ = health.check_gpus(needed, "node03")
    assert problems == [f"0 of 7 GPUs: no nvidia-smi, and {tmp_path}/node03-nvidia[0-7] counted"]
    problems, _ = health.check_gpus(Needed(gpus=7, gpu_devices=needed.gpu_devices, nvlinks=8), "node02")
    assert problems == ["nvidia-smi is missing: NVLinks cannot be counted"]


def test_infiniband_ports(tmp_path: Path) -> None:
    for adapter, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN"), ("mlx5_2", "2: INIT")):
        port = tmp_path / adapter / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "rate").write_text("200 Gb/sec (4X HDR)\n")
    problems, measured = health.check_infiniband(1, tmp_path)
    assert problems == []
    assert measured["infiniband"]["mlx5_0/1"] == "ACTIVE 200 Gb/sec (4X HDR)"
    assert health.check_infiniband(3, tmp_path)[0] == [
        "1 of 3 InfiniBand ports are ACTIVE; mlx5_1/1 is DOWN 200 Gb/sec (4X HDR); mlx5_2/1 is INIT 200 Gb/sec (4X HDR)"
    ]
    assert health.check_infiniband(1, tmp_path / "none")[0] == ["0 of 1 InfiniBand ports are ACTIVE"]
    assert health.check_infiniband(0, tmp_path / "none") == ([], {})


def test_scratch_and_shared_memory(tmp_path: Path) -> None:
    problems, measured = health.check_scratch(tmp_path, 0)
    assert problems == []
    assert measured["scratch_free_gb"] > 0
    assert list(tmp_path.iterdir()) == []
    assert "GB free of 1e+12 needed" in health.check_scratch(tmp_path, 1e12)[0][0]
    missing = tmp_path / "missing"
    assert health.check_scratch(missing, 0)[0] == [f"scratch {missing} cannot be used: No such file or directory"]
    assert health.check_scratch(Path("/proc"), 0)[0][0].startswith("scratch /proc cannot be used: ")
    assert health.check_shared_memory(1e12, tmp_path)[0][0].endswith("GB of 1e+12 needed")
    assert health.check_shared_memory(1, missing)[0] == [f"{missing} does not exist"]


def test_the_command_of_a_node_is_light_and_leaves_its_file(tmp_path: Path) -> None:
    code = (
        "import sys; from jobs.health import main; "
        f"main(['node', {str(tmp_path / 'health')!r}, 'gpus=0', 'scratch={tmp_path}', 'shared_memory_gb=1e12']); "
        "print(sorted({'torch', 'omegaconf', 'yaml', 'rich', 'submitit', 'numpy'} & sys.modules.keys()))"
    )
    environment = os.environ | {"SLURMD_NODENAME": "node07"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout == "[]\n"
    report = json.loads((tmp_path / "health" / "node07.json").read_text())
    assert report.keys() == {"node", "problems", "measured", "time"}
    assert report["node"] == "node07"
    assert len(report["problems"]) == 1
    assert answer.stderr == f"node07: {report['problems'][0]}\n"


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node07")
    with pytest.raises(HealthError, match="cannot write into /proc/health from this node"):
        health.check_node(Path("/proc/health"), Needed())


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_settings_of_a_profile_come_back(path: Path) -> None:
    site = load_site(path)
    needed = health.parse_needed(health.arguments(site))
    assert (needed.gpus, needed.scratch, needed.exclusive) == (site.gpus_per_node, site.scratch, site.exclusive)
    for name in ("gpu_devices", "infiniband_ports", "nvlinks", "allreduce_gbps", "allreduce_mb", "scratch_gb"):
        assert getattr(needed, name) == getattr(site.health, name)
        assert type(getattr(needed, name)) is type(getattr(site.health, name))


@pytest.mark.parametrize("setting", ["gpu=8", "gpus=many", "exclusive=yes", "gpus"])
def test_a_wrong_setting(setting: str) -> None:
    with pytest.raises(InputError, match="health: "):
        health.parse_needed([setting])


def leave(folder: Path, node: str, *problems: str, **measured: Any) -> None:
    """The file of a node."""
    (folder / f"{node}.json").write_text(json.dumps({"node": node, "problems": problems, "measured": measured}))


def test_verdict_names_the_bad_nodes(tmp_path: Path) -> None:
    leave(tmp_path, "node01")
    leave(tmp_path, "node02", "GPU 3 has uncorrected ECC errors: 2", "7 of 8 GPUs answer nvidia-smi")
    (tmp_path / "node04.json").write_text('{"node": "node04", "prob')
    (tmp_path / "node05.json").write_text("[]")
    assert verdict(tmp_path, ["node01", "node02", "node03", "node04", "node05"]) == {
        "node02": "GPU 3 has uncorrected ECC errors: 2; 7 of 8 GPUs answer nvidia-smi",
        "node03": "did not answer",
        "node04": "did not answer",
        "node05": "did not answer",
    }
    assert verdict(tmp_path, ["node01"]) == {}


def test_verdict_of_different_problems_everywhere(tmp_path: Path) -> None:
    leave(tmp_path, "node01", "7 of 8 GPUs answer nvidia-smi")
    leave(tmp_path, "node02", "scratch /tmp has 1.0 GB free of 10 needed")
    assert verdict(tmp_path, ["node01", "node02"]).keys() == {"node01", "node02"}


def test_verdict_doubts_the_profile(tmp_path: Path) -> None:
    leave(tmp_path, "node01", "1 of 8 InfiniBand ports are ACTIVE")
    leave(tmp_path, "node02", "scratch /tmp has 1.0 GB free of 10 needed", "2 of 8 InfiniBand ports are ACTIVE")
    with pytest.raises(HealthError) as error:
        verdict(tmp_path, ["node01", "node02", "node03"])  # node03 did not answer: that changes nothing
    assert str(error.value).startswith("all 2 nodes have the same problem")
    assert str(error.value).endswith(": 1 of 8 InfiniBand ports are ACTIVE")
    assert "\n" not in str(error.value)
    assert verdict(tmp_path, ["node01"]) == {"node01": "1 of 8 InfiniBand ports are ACTIVE"}  # one node proves nothing


def test_verdict_without_any_answer(tmp_path: Path) -> None:
    with pytest.raises(HealthError, match="none of the 2 nodes wrote a file"):
        verdict(tmp_path, ["node01", "node02"])
    assert verdict(tmp_path, ["node01"]) == {"node01": "did not answer"}


def test_verdict_of_an_allreduce_that_did_not_end(tmp_path: Path) -> None:
    leave(tmp_path, "node01", allreduce=health.UNFINISHED)
    leave(tmp_path, "node02", allreduce=health.UNFINISHED)
    with pytest.raises(HealthError, match="the all-reduce over 2 nodes did not end"):
        verdict(tmp_path, ["node01", "node02"])
    leave(tmp_path, "node02", "local rank 3 cannot use its GPU: CUDA error", allreduce=health.UNFINISHED)
    assert verdict(tmp_path, ["node01", "node02"]) == {"node02": "local rank 3 cannot use its GPU: CUDA error"}


@pytest.mark.parametrize("count", range(1, 10))
def test_ring_rounds(count: int) -> None:
    nodes = [f"n{number}" for number in range(count)]
    rounds = allreduce.ring_rounds(nodes)
    for pairs in rounds:
        used = [node for pair in pairs for node in pair]
        assert len(used) == len(set(used))
    pairs_of_all = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(pairs_of_all) == len(set(pairs_of_all)) == {1: 0, 2: 1}.get(count, count)


def ring(nodes: str, slow: str, links: str = "") -> dict[tuple[str, str], float]:
    """Bandwidths of neighbours when some nodes (letters) and links (two letters each) are slow."""
    pairs = [pair for pairs in allreduce.ring_rounds(nodes) for pair in pairs]
    bad = {frozenset(link) for link in links.split()}
    return {pair: 5.0 if set(pair) & set(slow) or frozenset(pair) in bad else 90.0 for pair in pairs}


@pytest.mark.parametrize(
    ("nodes", "slow", "links", "blamed"),
    [
        ("abcdef", "", "", "abcdef"),  # only all together are slow: the network between them
        ("abcdef", "c", "", "c"),
        ("abc", "b", "", "b"),
        ("abcdef", "ab", "", "ab"),
        ("abcdefgh", "bf", "", "bf"),
        ("abcdef", "", "cd", "cd"),
        ("abcdef", "e", "bc", "bce"),
        ("ab", "", "ab", "ab"),
    ],
)
def test_blame_by_pairs(nodes: str, slow: str, links: str, blamed: str) -> None:
    bad = allreduce.blame(80.0, 5.0, dict.fromkeys(nodes, 150.0), ring(nodes, slow, links))
    assert "".join(sorted(bad)) == blamed
    assert all("80 GB/s" in problem for problem in bad.values())


def test_what_a_node_is_blamed_for() -> None:
    alone = dict.fromkeys("abcd", 150.0) | {"b": 20.0}
    bad = allreduce.blame(80.0, 5.0, alone, ring("abcd", "b"))
    assert bad == {"b": "the all-reduce of its own ranks reaches 20 of 80 GB/s"}
    between = allreduce.blame(80.0, 5.0, {}, ring("ab", "", "ab"))
    assert set(between.values()) == {"the all-reduce between a and b reaches 5 of 80 GB/s"}
    assert allreduce.blame(80.0, 85.0, dict.fromkeys("abcd", 150.0), ring("abcd", "")) == {}


def rank_of(folder: Path, settings: list[str], environment: dict[str, str]) -> None:
    """A rank that srun has started."""
    os.environ.update(environment)
    health.main(["allreduce", str(folder), *settings])


def run_ranks(folder: Path, nodes: int, per_node: int, gbps: str) -> dict[str, Any]:
    """All ranks of the command on gloo; what the nodes' files say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        ranks = []
        for rank in range(nodes * per_node):
            environment = {
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank % per_node),
                "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
                "SLURMD_NODENAME": f"node{rank // per_node}",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            settings = [f"allreduce_gbps={gbps}", "allreduce_mb=1"]
            ranks.append(stack.enter_context(forked(rank_of, folder, settings, environment)))
        assert [(rank.join(), rank.error) for rank in ranks] == [(0, "")] * len(ranks)
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.iterdir())}


def test_allreduce_that_is_fast_enough(tmp_path: Path) -> None:
    leave(tmp_path, "node0", gpus=8)
    leave(tmp_path, "node1", "bad", gpus=8)
    reports = run_ranks(tmp_path, 2, 1, "1e-9")
    for report in reports.values():
        assert report["measured"]["allreduce"] == "ended"
        assert report["measured"]["allreduce_gbps"] > 0
        assert report["measured"]["gpus"] == 8
    assert verdict(tmp_path, ["node0", "node1"]) == {"node1": "bad"}


def test_allreduce_of_two_nodes_by_themselves(tmp_path: Path) -> None:
    reports = run_ranks(tmp_path, 2, 2, "1e9")
    for report in reports.values():
        assert report["measured"]["allreduce_alone_gbps"] > 0
        assert len(report["problems"]) == 1
        assert report["problems"][0].startswith("the all-reduce of its own ranks reaches")
    with pytest.raises(HealthError, match="all 2 nodes have the same problem"):
        verdict(tmp_path, ["node0", "node1"])


def test_allreduce_of_neighbours(tmp_path: Path) -> None:
    reports = run_ranks(tmp_path, 3, 1, "1e9")
    pairs = {name: sorted(report["measured"]["allreduce_pairs_gbps"]) for name, report in reports.items()}
    assert pairs == {
        "node0": ["node0 node1", "node2 node0"],
        "node1": ["node0 node1", "node1 node2"],
        "node2": ["node1 node2", "node2 node0"],
    }
    for report in reports.values():
        assert min(report["measured"]["allreduce_pairs_gbps"].values()) > 0
        assert report["problems"][0].startswith("the all-reduce with each of its neighbours reaches at most")


def test_bus_bandwidth_does_not_count_a_single_rank(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 1, 1, "1e9")["node0"]["problems"] == []


def test_a_rank_that_cannot_make_its_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node05")
    monkeypatch.setenv("SLURM_PROCID", "40")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    with pytest.raises(OneVisionError, match="local rank 0 cannot use its GPU"):
        allreduce.check_ranks(tmp_path, Needed(allreduce_mb=-1))
    report = json.loads((tmp_path / "node05.json").read_text())
    assert report["measured"] == {"allreduce": health.UNFINISHED}
    assert verdict(tmp_path, ["node05"])["node05"].startswith("local rank 0 cannot use its GPU")
