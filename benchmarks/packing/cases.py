"""The cases of `make bench-packing`: each measures something on the corpus in `folder` and says what is asked of it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.packing import peers, runs
from benchmarks.packing.synthetic import Lengths, attributes, draw, write
from benchmarks.results import Row
from onevision.data.mixture import Mixture
from onevision.data.schedule import PATCH_COST, deal
from onevision.packing.balanced import Bounds, solve_bounded
from onevision.packing.draws import stream
from onevision.packing.index import COLUMNS, FILE, PackIndex, part_file, write_master, write_pack_part
from onevision.packing.parts import Parts
from onevision.packing.solver import solve

CAPACITY = 8192
BOUNDED = {"max_patches": 24_000, "max_attention_cost": 50_000_000}  # 1.16 and 4 times the mean of a pack
PEER_SAMPLES = 1_000_000
ROUNDS = 4  # of what a disk that others use too is asked
GLOBAL_BATCH, RANKS, STEPS = 256, 16, 200


def solver(folder: Path) -> list[Row]:
    """The solver alone, on one core."""
    corpus = Lengths.open(folder / "corpus")
    parts = Parts(len(corpus), 1_000_000, seed=0)
    seconds, bounded_seconds, kept = 0.0, 0.0, 0
    bounds = Bounds(CAPACITY, *BOUNDED.values())
    for part in range(-1, parts.count):  # the first one, to compile, does not count
        vision = parts.read(corpus.vision_tokens, max(part, 0))
        lengths = parts.read(corpus.text_tokens, max(part, 0)) + vision
        start = time.process_time()
        solve(lengths, CAPACITY, stream(part))
        middle = time.process_time()
        fits = within(lengths, vision * 4, bounds)
        lengths, patches = lengths[fits], vision[fits] * 4
        begin = time.process_time()
        solve_bounded(lengths, patches, bounds, stream(part))
        if part >= 0:
            seconds += middle - start
            bounded_seconds += time.process_time() - begin
            kept += len(lengths)
    rate, bounded_rate = len(corpus) / seconds, kept / bounded_seconds
    path, unit = f"solver, {len(corpus):,} samples", "M samples/s"
    return [
        Row(path, "tokens bounded", rate / 1e6, unit, "goal", 40, ">= 40", rate >= 40e6),
        Row(path, "tokens, patches, attention", bounded_rate / 1e6, unit, "goal", 8, ">= 8", bounded_rate >= 8e6),
    ]


def fill(folder: Path) -> list[Row]:
    """Fill and distance from the lower bound, at three capacities, without and with bounds."""
    rows = []
    lengths, vision = draw(2_000_000, seed=3)
    for capacity in (8192, 16384, 32768):
        packs, least = len(solve(lengths, capacity, stream(0))[0]) - 1, -(-int(lengths.sum()) // capacity)
        share = int(lengths.sum()) / (packs * capacity)
        path = f"fill at {capacity:,}"
        rows.append(Row(path, "tokens bounded", 100 * share, "%", "bound", 100, ">= 99.99 %", share >= 0.9999))
        over = packs / least - 1
        rows.append(Row(path, "packs", packs, "packs", "lower bound", least, "<= 0.02 % above", over <= 2e-4))
        attention = max(capacity**2 * 3 // 4, 9000**2) if capacity > 8192 else capacity**2 * 3 // 4
        bounds = Bounds(capacity, int(1.15 * 4 * vision.sum() / least), attention)
        fits = within(lengths, vision * 4, bounds)
        packs = len(solve_bounded(lengths[fits], vision[fits] * 4, bounds, stream(0))[0]) - 1
        share = int(lengths[fits].sum()) / (packs * capacity)
        measure = f"patches <= 1.15 x mean, attention <= {attention:,}; {1 - fits.mean():.3%} left out"
        rows.append(Row(path, measure, 100 * share, "%", "bound", 100, ">= 99.9 %", share >= 0.999))
    return rows


def step(folder: Path) -> list[Row]:
    """The step from lengths in HDF5 to packs in HDF5, on two ranks, without and with bounds."""
    rows = []
    for name, settings, goal in (("tokens bounded", {}, 30), ("tokens, patches, attention", BOUNDED, 30)):
        facts = runs.pack(folder / "corpus", folder / f"packs-{len(settings)}", 2, **settings)
        path = f"step, {facts['summary']['samples']:,} samples, 2 ranks"
        seconds, memory = facts["seconds"], facts["peak_gb"]
        rows.append(Row(path, name, seconds, "s", "goal", goal, f"< {goal} s", seconds < goal))
        rows.append(Row(path, f"memory of both ranks: {name}", memory, "GB", "goal", 8, "< 8 GB", memory < 8))
    return rows


def against_peers(folder: Path) -> list[Row]:
    """The solver against trl's best-fit decreasing and NumPy first-fit."""
    rows = []
    lengths, _ = draw(PEER_SAMPLES, seed=5)
    solve(lengths[:1000], CAPACITY, stream(0))
    for name, peer in (("NumPy first-fit", peers.numpy_first_fit), ("trl's bfd", peers.trl_bfd)):
        start = time.process_time()
        packs = len(solve(lengths, CAPACITY, stream(0))[0]) - 1
        rate = len(lengths) / (time.process_time() - start)
        peer_seconds, peer_packs = peer(lengths, CAPACITY)
        peer_rate = len(lengths) / peer_seconds
        path = f"against {name}"
        rows.append(Row(path, "samples/s", rate, "samples/s", "peer", peer_rate, ">= 20 x", rate >= 20 * peer_rate))
        rows.append(Row(path, "packs", packs, "packs", "peer", peer_packs, "no more", packs <= peer_packs))
    return rows


def files(folder: Path) -> list[Row]:
    """The pack index written to and read from the disk, against dd with the same rule: on disk, not in the cache."""
    index = PackIndex.open(folder / "packs-0")
    parts = [
        {name: np.array(getattr(index, name).pieces[part]) for name in COLUMNS}
        for part in range(min(40, len(index.sample.pieces)))
    ]
    starts = np.cumsum([0, *(len(part["tokens"]) for part in parts)])
    for part, first, last in zip(parts, starts[:-1], starts[1:], strict=True):
        part["pack_start"] = np.array(index.pack_start[first : last + 1]) - index.pack_start[first]
    target = folder / "written"
    target.mkdir()
    wrote, dd_wrote, read, dd_read = [], [], [], []
    for _ in range(ROUNDS):
        for path in target.iterdir():
            path.unlink()
        start = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:  # a part goes to the disk while the next one is made
            waits = []
            for number, part in enumerate(parts):
                write_pack_part(target, number, part)
                waits.append(pool.submit(peers.to_disk, target / part_file(number)))
            write_master(target, len(parts), attributes(index.samples, CAPACITY))
            waits.append(pool.submit(peers.to_disk, target / FILE))
            for wait in waits:
                wait.result()
        paths = sorted(target.iterdir())
        wrote.append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in paths)
        dd_wrote.append(peers.dd_write(folder / "dd", size))
        dd_read.append(peers.dd_read(paths))
        peers.forget(paths)
        start = time.perf_counter()
        read_columns(PackIndex.open(target))
        read.append(time.perf_counter() - start)
    best = size / min(wrote) / 1e6, size / min(dd_wrote) / 1e6, size / min(read) / 1e6, size / min(dd_read) / 1e6
    path, rule = f"pack index, {size / 1e6:,.0f} MB, best of {ROUNDS}", ">= 80 % of dd"
    return [
        Row(path, "written", best[0], "MB/s", "dd", best[1], rule, best[0] >= 0.8 * best[1]),
        Row(path, "read", best[2], "MB/s", "dd", best[3], rule, best[2] >= 0.8 * best[3]),
    ]


def balance(folder: Path) -> list[Row]:
    """The spread of cost over 16 data-parallel ranks in a step of 256 packs, dealt as the loader does and at random."""
    rows = []
    for name in ("packs-0", "packs-2"):
        index = PackIndex.open(folder / name)
        dealt, random = [], []
        for number in range(STEPS):
            _, ids = Mixture([index.packs], [Fraction(1)], seed=0).at(number * GLOBAL_BATCH, GLOBAL_BATCH)
            cost = index.attention_cost[ids] + PATCH_COST * index.patches[ids].astype(np.int64)
            dealt.append(spread([cost[hand].sum() for hand in deal(cost, RANKS)]))
            random.append(spread(cost.reshape(RANKS, -1).sum(axis=1)))  # the packs of a step are in random order
        mean = float(np.mean(dealt))
        measure = f"(dearest - cheapest rank) / mean, {'tokens bounded' if name == 'packs-0' else 'with bounds'}"
        path = f"balance, {GLOBAL_BATCH} packs on {RANKS} ranks"
        beside = 100 * float(np.mean(random))
        rows.append(Row(path, measure, 100 * mean, "%", "random dealing", beside, "< 2 %", mean < 0.02))
    return rows


def scaling(folder: Path) -> list[Row]:
    """The step on 1, 2, 4, 8 ranks, and the bytes that a rank exchanges for two sizes of corpus."""
    write(folder / "small", 2_000_000)
    write(folder / "large", 8_000_000)
    rows = []
    first: dict[str, Any] = {}
    for ranks in (1, 2, 4, 8):
        small = runs.pack(folder / "small", folder / "scaling", ranks, part_samples=250_000)
        large = runs.pack(folder / "large", folder / "scaling", ranks, part_samples=1_000_000)
        first = first or large
        same = large["summary"] == first["summary"]
        path, alone = f"scaling, {ranks} ranks on {len(os.sched_getaffinity(0))} cores", first["seconds"]
        rows.append(Row(path, "8,000,000 samples", large["seconds"], "s", "1 rank", alone, "the same packs", same))
        growth = abs(large["bytes"] - small["bytes"]) <= 0.02 * small["bytes"]
        what, other = "MPI bytes a rank, 8 parts of 1,000,000", small["bytes"]
        rows.append(Row(path, what, large["bytes"], "bytes", "250,000 a part", other, "the same to 2 %", growth))
    return rows


def killed(folder: Path) -> list[Row]:
    """Ten million samples (no more than the corpus has) packed by two ranks that are killed three times."""
    samples = min(10_000_000, len(Lengths.open(folder / "corpus")))
    write(folder / "ten", samples)
    settings = {"part_samples": samples // 40, **BOUNDED}
    whole = runs.pack(folder / "ten", folder / "undisturbed", 2, **settings)["summary"]["fingerprint"]
    left = [runs.kill_after(folder / "ten", folder / "killed", 2, parts, **settings) for parts in (5, 15, 30)]
    found = runs.finish(folder / "ten", folder / "killed", 2, **settings)["summary"]["fingerprint"]
    path = f"{samples:,} samples, killed three times"
    measure = f"parts left after the kills ({', '.join(map(str, left))} of 40)"
    return [Row(path, measure, left[-1], "parts", "fingerprints equal", float(found == whole), "equal", found == whole)]


CASES = (solver, fill, step, against_peers, files, balance, scaling, killed)


def within(lengths: NDArray[np.int32], patches: NDArray[np.int32], bounds: Bounds) -> NDArray[np.bool_]:
    """Which samples keep the bounds alone."""
    fits = (lengths <= bounds.tokens) & (patches <= bounds.patches)
    return fits & (lengths.astype(np.int64) ** 2 <= bounds.attention_cost)


def read_columns(index: PackIndex) -> None:
    """Read every value."""
    for name in COLUMNS:
        for piece in getattr(index, name).pieces:
            piece.max()
    index.pack_start.max()


def spread(costs: Any) -> float:
    """Dearest less cheapest, to the mean."""
    return float((np.max(costs) - np.min(costs)) / np.mean(costs))
