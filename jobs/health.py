"""Is a node fit for a job? Each node looks at itself before the ranks start, and the batch script judges the answers.

    python -m jobs.health node FOLDER key=value ...        once on every node; writes FOLDER/<node>.json
    python -m jobs.health allreduce FOLDER key=value ...   in every rank (jobs/allreduce.py); adds to these files

The settings are those of `arguments(site)`. They come along in the command and not from the profile: reading it would
double what such a start costs, of which there are many at once, and a queued job keeps the values it was queued with.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onevision.errors import InputError, OneVisionError
from onevision.files import read_json, write_json

if TYPE_CHECKING:
    from jobs.sites import Site

Found = tuple[list[str], dict[str, Any]]  # problems, measured values

UNFINISHED = "did not end"  # `measured["allreduce"]` until it has
_SECONDS = 60  # nvidia-smi of a GPU that is lost can hang
_STRAY_MIB = 1024  # of GPU memory; monitoring uses less, and a left-over rank more
_GPU_FIELDS = "index,name,memory.total,ecc.errors.uncorrected.volatile.total,retired_pages.pending"
_ROW_FIELDS = "gpu_uuid,remapped_rows.pending,remapped_rows.failure"
_PROCESS_FIELDS = "pid,used_memory,process_name"  # a name may contain commas: last
_ABSENT = ("[N/A]", "N/A", "[Not Supported]")


class HealthError(OneVisionError):
    """The nodes are not fit, and leaving some out would not help."""


@dataclass(frozen=True)
class Needed:
    """What a node must have; 0 leaves a check out."""

    gpus: int = 0
    gpu_devices: str = "/dev/nvidia[0-9]*"  # glob that is counted where nvidia-smi is missing
    exclusive: bool = True  # nobody else may use the GPUs
    nvlinks: int = 0  # active links a GPU
    infiniband_ports: int = 0  # ACTIVE ports
    scratch: str = "/tmp"
    scratch_gb: float = 0.0  # GB of 1e9 bytes, free
    shared_memory_gb: float = 0.0  # GB of 1e9 bytes
    allreduce_gbps: float = 0.0  # GB/s
    allreduce_mb: int = 256  # MB of 1e6 bytes


def arguments(site: Site) -> list[str]:
    """The key=value arguments with which the two commands get a profile's values."""
    health = site.health
    values = {
        "gpus": site.gpus_per_node,
        "exclusive": site.exclusive,
        "scratch": site.scratch,
    } | {field.name: getattr(health, field.name) for field in fields(Needed) if hasattr(health, field.name)}
    return [f"{name}={value}" for name, value in values.items()]


def parse_needed(settings: Iterable[str]) -> Needed:
    """The opposite of `arguments`.

    Raises:
        InputError: a setting that is not known, or not of its type.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Needed)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in defaults:
            raise InputError(f"health: unknown setting {setting!r}; there are: {', '.join(defaults)}")
        kind = type(defaults[name])
        try:
            values[name] = {"True": True, "False": False}[value] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise InputError(f"health: {setting!r} is not a value of type {kind.__name__}") from None
    return Needed(**values)


def node_name() -> str:
    """The node's name as Slurm writes it in a job's node list."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_node(folder: Path, needed: Needed) -> dict[str, Any]:
    """Look at this node and write `<folder>/<node>.json`: {"node", "problems", "measured", "time"}. That this file
    arrives is the check that the node can write into the run folder.

    Raises:
        HealthError: it cannot.
    """
    node = node_name()
    problems: list[str] = []
    measured: dict[str, Any] = {}
    for found in (
        check_gpus(needed, node),
        check_infiniband(needed.infiniband_ports),
        check_scratch(Path(needed.scratch), needed.scratch_gb),
        check_shared_memory(needed.shared_memory_gb),
    ):
        problems += found[0]
        measured |= found[1]
    report = {"node": node, "problems": problems, "measured": measured, "time": time.time()}
    try:
        write_json(folder / f"{node}.json", report)
    except OSError as error:
        raise HealthError(f"cannot write into {folder} from this node: {error.strerror}") from None
    return report


def check_gpus(needed: Needed, node: str) -> Found:
    """Number of GPUs; where there is nvidia-smi also memory errors, NVLinks and strangers' processes."""
    if not needed.gpus:
        return [], {}
    if shutil.which("nvidia-smi") is None:
        return _count_devices(needed, node)
    problems: list[str] = []
    count = count_gpus(_nvidia_smi(problems, "-L"))
    measured: dict[str, Any] = {"gpus": count}
    if count < needed.gpus:
        problems.append(f"{count} of {needed.gpus} GPUs answer nvidia-smi")
    if not count:
        return problems, measured
    for found in (
        gpu_memory(_nvidia_smi(problems, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits")),
        remapped_rows(_nvidia_smi(problems, f"--query-remapped-rows={_ROW_FIELDS}", "--format=csv,noheader")),
        strays(
            _nvidia_smi(problems, f"--query-compute-apps={_PROCESS_FIELDS}", "--format=csv,noheader,nounits"),
            needed.exclusive,
        ),
        nvlinks(_nvidia_smi(problems, "nvlink", "-s"), needed.nvlinks) if needed.nvlinks else ([], {}),
    ):
        problems += found[0]
        measured |= found[1]
    return problems, measured


def count_gpus(text: str) -> int:
    """GPUs in the output of `nvidia-smi -L`."""
    return len(re.findall(r"^GPU \d+: ", text, re.MULTILINE))


def gpu_memory(text: str) -> Found:
    """Uncorrected memory errors since the driver was loaded, and pages to be retired, of the CSV of `_GPU_FIELDS`.
    The pages concern GPUs before Ampere; later ones remap rows instead and answer [N/A]."""
    problems, names, sizes = [], [], []
    for row in _rows(text, 5):
        index, name, size, errors, pending = row
        names.append(name)
        sizes.append(int(size) if size.isdigit() else size)
        if errors not in ("0", *_ABSENT):
            problems.append(f"GPU {index} has uncorrected ECC errors: {errors}")
        if pending not in ("No", "0", *_ABSENT):
            problems.append(f"GPU {index} has memory pages to be retired ({pending}): it needs a reset")
    return problems, {"gpu": sorted(set(names)), "gpu_memory_mib": sorted(set(sizes), key=str)}


def remapped_rows(text: str) -> Found:
    """Memory rows whose remapping waits for a reset of the GPU or has failed, of the CSV of `_ROW_FIELDS`."""
    problems = []
    for uuid, pending, failure in _rows(text, 3):
        if pending not in ("No", "0", *_ABSENT):
            problems.append(f"{uuid} has memory rows to be remapped ({pending}): it needs a reset")
        if failure not in ("No", "0", *_ABSENT):
            problems.append(f"{uuid} could not remap a memory row ({failure}): it needs to be replaced")
    return problems, {}


def strays(text: str, exclusive: bool) -> Found:
    """Processes on the GPUs before the job's own, of the CSV of `_PROCESS_FIELDS`: a problem where the job has the
    node to itself and they hold memory that the job will miss."""
    rows = [row for row in _rows(text, 3) if row[0].isdigit()]
    problems = [
        f"process {pid} ({name}) holds {memory} MiB of a GPU"
        for pid, memory, name in rows
        if exclusive and memory.isdigit() and int(memory) >= _STRAY_MIB
    ]
    return problems, {"gpu_processes": [f"{pid} {memory} MiB {name}" for pid, memory, name in rows]}


def nvlinks(text: str, needed: int) -> Found:
    """GPUs with too few active NVLinks in the output of `nvidia-smi nvlink -s`."""
    active: dict[str, int] = {}
    gpu = ""
    for line in text.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            gpu = match[1]
            active[gpu] = 0
        elif gpu and (match := re.match(r"\s+Link \d+: ([\d.]+) GB/s", line)) and float(match[1]):
            active[gpu] += 1
    problems = [f"GPU {gpu} has {count} of {needed} NVLinks" for gpu, count in active.items() if count < needed]
    if not active:
        problems.append(f"no GPU of this node has NVLinks, {needed} are needed")
    return problems, {"nvlinks": sorted(set(active.values()))}


def check_infiniband(needed: int, root: Path = Path("/sys/class/infiniband")) -> Found:
    """RDMA ports in state ACTIVE, those of storage adapters included."""
    if not needed:
        return [], {}
    states = {}
    for path in sorted(root.glob("*/ports/*/state")):
        rate = path.with_name("rate")
        state = path.read_text(encoding="utf-8").strip().partition(": ")[2]  # "4: ACTIVE"
        states[f"{path.parts[-4]}/{path.parts[-2]}"] = (
            f"{state} {rate.read_text(encoding='utf-8').strip()}" if rate.exists() else state
        )
    active = sum(state.startswith("ACTIVE") for state in states.values())
    problems = []
    if active < needed:
        others = [f"{port} is {state}" for port, state in states.items() if not state.startswith("ACTIVE")]
        problems.append("; ".join([f"{active} of {needed} InfiniBand ports are ACTIVE", *others]))
    return problems, {"infiniband": states}


def check_scratch(scratch: Path, needed_gb: float) -> Found:
    """Free space in the node-local folder, and that a file keeps what is written. It is read from the page cache: this
    finds a full, missing or read-only file system, not a disk that forgets."""
    probe = scratch / f".onevision-health-{node_name()}-{os.getpid()}"
    written = os.urandom(1 << 20)
    try:
        free = shutil.disk_usage(scratch).free / 1e9
        try:
            with probe.open("wb") as file:
                file.write(written)
                os.fsync(file.fileno())
            kept = probe.read_bytes() == written
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return [f"scratch {scratch} cannot be used: {error.strerror}"], {}
    problems = [] if kept else [f"scratch {scratch} does not keep what is written"]
    if free < needed_gb:
        problems.append(f"scratch {scratch} has {free:.1f} GB free of {needed_gb:g} needed")
    return problems, {"scratch_free_gb": round(free, 3)}


def check_shared_memory(needed_gb: float, path: Path = Path("/dev/shm")) -> Found:
    """Size of the file system through which data workers hand over batches."""
    if not needed_gb:
        return [], {}
    if not path.is_dir():
        return [f"{path} does not exist"], {}
    size = shutil.disk_usage(path).total / 1e9
    problems = [f"{path} has {size:.1f} GB of {needed_gb:g} needed"] if size < needed_gb else []
    return problems, {"shared_memory_gb": round(size, 3)}


def verdict(folder: Path, nodes: Iterable[str]) -> dict[str, str]:
    """The unfit nodes among `nodes` and why: their own problems, or that they did not answer. `folder` must hold
    nothing of an earlier start.

    Raises:
        HealthError: nothing that leaving nodes out would mend: no node answered, all that answered have the same
            problem (numbers apart; of two nodes or more), or the all-reduce did not end and no node says why.
    """
    names = list(nodes)
    reports = {node: _report(folder / f"{node}.json") for node in names}
    problems = {node: report["problems"] for node, report in reports.items() if report is not None}
    if len(names) > 1 and not problems:
        raise HealthError(
            f"none of the {len(names)} nodes wrote a file into {folder}: what srun printed above says why; "
            "the folder must be on a file system that all nodes share"
        )
    kinds = [{_kind(problem) for problem in found} for found in problems.values()]
    common = set.intersection(*kinds) if len(kinds) > 1 else set()
    if common:
        first = next(iter(problems.values()))
        text = "; ".join(problem for problem in first if _kind(problem) in common)
        raise HealthError(
            f"all {len(kinds)} nodes have the same problem, so it is none of a single node; correct the profile "
            f"(its `health`, `gpus_per_node`, `scratch`) if it asks for the wrong thing: {text}"
        )
    bad = {node: "; ".join(found) for node, found in problems.items() if found}
    bad |= {node: "did not answer" for node, report in reports.items() if report is None}
    unfinished = any(report and report["measured"].get("allreduce") == UNFINISHED for report in reports.values())
    if unfinished and not bad:
        raise HealthError(
            f"the all-reduce over {len(names)} nodes did not end, and no node found out why: see the lines above"
        )
    return bad


def _kind(problem: str) -> str:
    return re.sub(r"\b(?:GPU|MIG)-[0-9a-f-]+|\d+(?:\.\d+)?", "#", problem)


def _report(path: Path) -> dict[str, Any] | None:
    try:
        report = read_json(path)
    except (InputError, OSError):
        return None
    complete = isinstance(report, dict) and {"problems", "measured"} <= report.keys()
    return report if complete else None


def _count_devices(needed: Needed, node: str) -> Found:
    pattern = needed.gpu_devices.replace("{node}", node)
    count = len(glob.glob(pattern))  # noqa: PTH207  the pattern is an absolute path
    problems = [f"{count} of {needed.gpus} GPUs: no nvidia-smi, and {pattern} counted"] if count < needed.gpus else []
    if needed.nvlinks:
        problems.append("nvidia-smi is missing: NVLinks cannot be counted")
    return problems, {"gpus": count, "nvidia_smi": "missing: memory errors and processes not looked for"}


def _nvidia_smi(problems: list[str], *arguments: str) -> str:
    command = ["nvidia-smi", *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        problems.append(f"nvidia-smi {arguments[0]} had no answer within {_SECONDS} s")
        return ""
    if answer.returncode:
        lines = [line for line in (answer.stderr + answer.stdout).splitlines() if line.strip()] or ["no message"]
        problems.append(f"nvidia-smi {arguments[0]}: {lines[0].strip()}")
    return answer.stdout


def _rows(text: str, width: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split(",", width - 1)] for line in text.splitlines()]
    return [row for row in rows if len(row) == width]


def main(given: list[str]) -> int:
    """The two commands of the head comment; exit code 0 whatever was found."""
    if len(given) < 2 or given[0] not in ("node", "allreduce"):
        raise InputError("usage: python -m jobs.health node|allreduce FOLDER key=value ...")
    folder, needed = Path(given[1]), parse_needed(given[2:])
    if given[0] == "allreduce":
        from jobs.allreduce import check_ranks  # imports torch

        check_ranks(folder, needed)
        return 0
    report = check_node(folder, needed)
    for problem in report["problems"]:
        print(f"{report['node']}: {problem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as failure:
        print(f"error: {node_name()}: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)
