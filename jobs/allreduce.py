"""How fast do the ranks of a job sum up? Finds the slow node or link before the job pays for it at every step.

    all ranks together        fast enough: done
    each node by itself       a slow one has a bad GPU or NVLink
    neighbours of a ring      a node that is slow with both has a bad adapter or cable; a single slow pair, a bad link
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.health import UNFINISHED, Needed, node_name
from onevision.errors import OneVisionError
from onevision.files import read_json, write_json

Pair = tuple[str, str]

_WARM_UP = 2
_ITERATIONS = 5
_TIMEOUT = timedelta(minutes=3)


def check_ranks(folder: Path, needed: Needed) -> None:
    """Measure, in every rank of the job, and add what concerns a node to its `<folder>/<node>.json`.

    Needs MASTER_ADDR and MASTER_PORT, and srun's SLURM_PROCID, SLURM_LOCALID and SLURM_STEP_NUM_TASKS.

    Raises:
        OneVisionError: the ranks did not find each other, or a collective failed.
    """
    node, rank, local_rank = node_name(), int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_LOCALID"])
    path = folder / f"{node}.json"
    if local_rank == 0:  # whatever ends this process, the file says that it ended too early
        _add(path, node, measured={"allreduce": UNFINISHED})
    try:  # before the ranks meet: what fails here is this node's own
        tensor = _tensor(local_rank, needed.allreduce_mb)
    except RuntimeError as error:
        line = f"local rank {local_rank} cannot use its GPU: {str(error).splitlines()[0]}"
        _add(path, node, problems=[line])
        raise OneVisionError(line) from None
    try:
        measured, problems = _measure(rank, node, tensor, needed.allreduce_gbps)
    except RuntimeError as error:
        raise OneVisionError(f"rank {rank}: the all-reduce failed: {str(error).splitlines()[0]}") from None
    if local_rank == 0:
        _add(path, node, problems=problems, measured=measured)
    if rank == 0 and "allreduce_gbps" in measured:
        print(f"all-reduce over {os.environ['SLURM_STEP_NUM_TASKS']} ranks: {measured['allreduce_gbps']:.3g} GB/s")


def bus_bandwidth(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> float:
    """Bus bandwidth of an all-reduce in GB/s of 1e9 bytes: 2(n-1)/n * bytes / time, the median of several, of the
    slowest rank. The formula is that of nccl-tests (PERFORMANCE.md): it does not depend on the number n of ranks."""
    seconds = []
    for number in range(_WARM_UP + _ITERATIONS):
        _wait(tensor)
        start = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        _wait(tensor)
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - start)
    slowest = tensor.new_tensor([statistics.median(seconds)])
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
    ranks = dist.get_world_size(group)
    return 2 * (ranks - 1) / ranks * tensor.nbytes / float(slowest) / 1e9


def ring_rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """The pairs of neighbours of a ring, in rounds in which no node has two: they are measured at the same time."""
    count = len(nodes)
    pairs = [(nodes[index], nodes[(index + 1) % count]) for index in range(count)]
    if count < 3:
        return [pairs[:1]] if count == 2 else []
    closing = [pairs.pop()] if count % 2 else []
    return [part for part in (pairs[::2], pairs[1::2], closing) if part]


def blame(needed: float, together: float, alone: dict[str, float], pairs: dict[Pair, float]) -> dict[str, str]:
    """The problem of each node that has one, from bandwidths in GB/s: of all nodes `together`, of each node `alone`
    and of `pairs` of nodes. Where no part is slow, the whole is, and each node says so."""
    bad = {
        node: f"the all-reduce of its own ranks reaches {gbps:.3g} of {needed:g} GB/s"
        for node, gbps in alone.items()
        if gbps < needed
    }
    rest = {pair: gbps for pair, gbps in pairs.items() if not set(pair) & bad.keys()}
    slow = {pair: gbps for pair, gbps in rest.items() if gbps < needed}
    for node in {node for pair in slow for node in pair}:
        mine = [pair for pair in rest if node in pair]
        if len(mine) > 1 and all(pair in slow for pair in mine):
            best = max(slow[pair] for pair in mine)
            bad[node] = f"the all-reduce with each of its neighbours reaches at most {best:.3g} of {needed:g} GB/s"
    for pair, gbps in slow.items():
        if not set(pair) & bad.keys():
            text = f"the all-reduce between {' and '.join(pair)} reaches {gbps:.3g} of {needed:g} GB/s"
            bad |= dict.fromkeys(pair, text)
    if not bad and together < needed:
        text = f"the all-reduce of all nodes reaches {together:.3g} of {needed:g} GB/s, though no node or pair is slow"
        bad = dict.fromkeys({*alone, *(node for pair in pairs for node in pair)}, text)
    return bad


def _measure(rank: int, node: str, tensor: torch.Tensor, needed: float) -> tuple[dict[str, Any], list[str]]:
    world = int(os.environ["SLURM_STEP_NUM_TASKS"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, world, is_master=rank == 0, timeout=_TIMEOUT)
    dist.init_process_group(
        "nccl" if tensor.is_cuda else "gloo", store=store, rank=rank, world_size=world, timeout=_TIMEOUT
    )
    try:
        if world == 1:
            return {"allreduce": "ended"}, []
        store.set(f"node/{rank}", node)
        members: dict[str, list[int]] = {}
        for number, name in enumerate(store.multi_get([f"node/{number}" for number in range(world)])):
            members.setdefault(name.decode(), []).append(number)
        together = round(bus_bandwidth(tensor), 3)
        measured: dict[str, Any] = {"allreduce": "ended", "allreduce_gbps": together}
        if together >= needed:
            return measured, []
        alone, pairs = _parts(rank, tensor, members, store, together)
        measured["allreduce_alone_gbps"] = alone.get(node)
        measured["allreduce_pairs_gbps"] = {" ".join(pair): gbps for pair, gbps in pairs.items() if node in pair}
        bad = blame(needed, together, alone, pairs)
        _meet(tensor)  # the store is gone with rank 0
        return measured, [bad[node]] if node in bad else []
    finally:
        dist.destroy_process_group()


def _parts(
    rank: int, tensor: torch.Tensor, members: dict[str, list[int]], store: dist.Store, together: float
) -> tuple[dict[str, float], dict[Pair, float]]:
    """Bandwidth of each node by itself (0 of them for one rank a node) and of the neighbours in a ring of the nodes."""
    nodes = list(members)
    alone = {node: ranks for node, ranks in members.items() if len(ranks) > 1}
    if len(nodes) == 1:
        return dict.fromkeys(alone, together), {}
    by_itself = _round(rank, tensor, alone, store)
    if len(nodes) == 2:
        return by_itself, {(nodes[0], nodes[1]): together}
    pairs: dict[Pair, float] = {}
    for pairs_now in ring_rounds(nodes):
        found = _round(rank, tensor, {" ".join(pair): members[pair[0]] + members[pair[1]] for pair in pairs_now}, store)
        pairs |= {pair: found[" ".join(pair)] for pair in pairs_now}
    return by_itself, pairs


def _round(rank: int, tensor: torch.Tensor, groups: dict[str, list[int]], store: dist.Store) -> dict[str, float]:
    """Bandwidth of several groups that measure at the same time, by name; every rank gets to know all of them."""
    handles = {name: dist.new_group(ranks) for name, ranks in groups.items()}  # all ranks make all groups
    for name, ranks in groups.items():
        if rank in ranks:
            gbps = bus_bandwidth(tensor, handles[name])
            if rank == ranks[0]:
                store.set(f"gbps/{name}", str(gbps))
    _meet(tensor)
    values = store.multi_get([f"gbps/{name}" for name in groups]) if groups else []
    return {name: round(float(value), 3) for name, value in zip(groups, values, strict=True)}


def _tensor(local_rank: int, megabytes: int) -> torch.Tensor:
    """Zeros, whose sum stays zero. A rank that sees a single GPU has that one, whatever its number on the node."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    tensor = torch.zeros(megabytes * 1_000_000 // 4, dtype=torch.float32, device=device)
    _wait(tensor)
    return tensor


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _meet(tensor: torch.Tensor) -> None:
    """Wait for all ranks."""
    dist.all_reduce(tensor.new_zeros(1))
    _wait(tensor)


def _add(path: Path, node: str, problems: Sequence[str] = (), measured: dict[str, Any] | None = None) -> None:
    report: dict[str, Any] = read_json(path) if path.exists() else {"node": node, "problems": [], "measured": {}}
    changed = {
        "problems": [*report["problems"], *problems],
        "measured": {**report["measured"], **(measured or {})},
        "time": time.time(),
    }
    write_json(path, {**report, **changed})
