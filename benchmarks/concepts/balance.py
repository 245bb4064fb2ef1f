"""Balance on synthetic concept indices: counts, weights, keys and selection of 85 million samples on two ranks.

    python -m benchmarks.concepts.balance [samples=85000000] [quick=1] [strict=1] [folder=…]

Figures and goals are printed as a table and written to benchmarks/results/concepts-balance.json; with strict=1 an unmet
goal gives exit code 1. quick=1 takes a million samples and writes no results. The indices (7 GB at a time for 85
million samples: concept numbers and scores) are written below `folder`, one after the other, and removed.

What the goal of coverage is about: a selection is smaller than its corpus, so a concept has fewer samples in it than
before, however it is drawn. "Rare" (fewer than 100 samples) is therefore compared between the balanced selection and a
random one of the same size, which the step draws beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.concepts import synthetic
from benchmarks.results import Row, package_versions, show, write_results
from onevision.concepts.balance.draw import Piece, lowest
from onevision.concepts.balance.keys import salt, sample_keys
from onevision.concepts.balance.weights import concept_values, count_concepts, sample_weights
from onevision.concepts.index import ConceptIndex
from onevision.ranks import ALONE

MPIEXEC = Path(sys.executable).with_name("mpiexec")
PART = 1_000_000  # samples of a part
KILLED_SAMPLES = 10_000_000
PEER_SAMPLES = 4_000_000
RANKS = 2
SHARES = (0.1, 0.25, 0.5)  # of the samples, that are drawn
STEP_SAMPLES, STEP_PART = 1_000_000, 10_000  # of the step with its corpus


def main(arguments: list[str]) -> int:
    """See the head comment."""
    settings = dict(text.split("=", 1) for text in arguments)
    quick = settings.get("quick") == "1"
    samples = int(settings.get("samples", 1_000_000 if quick else 85_000_000))
    with tempfile.TemporaryDirectory(prefix="onevision-balance-", dir=settings.get("folder")) as name:
        rows = balance(Path(name), samples, quick)
    show("concept balance", rows)
    if not quick:
        path = write_results("concepts-balance", rows, package_versions("numpy", "numba", "h5py", "mpi4py", "mpich"))
        print(f"{sum(row.met for row in rows)} of {len(rows)} goals met; written to {path}")
    return 1 if settings.get("strict") == "1" and not all(row.met for row in rows) else 0


def balance(folder: Path, samples: int, quick: bool = False) -> list[Row]:
    """All cases; with `quick` the last two are a tenth of their size, and no goal is set for rare concepts, which a
    small corpus has too many of."""
    rows = []
    for kind in synthetic.KINDS:
        print(f"input: {kind} concepts of {samples:,} samples", flush=True)
        synthetic.write_index(folder / "index", _sizes(samples), kind)
        for share in SHARES:
            rows += _drawn(folder, samples, kind, share, quick)
        shutil.rmtree(folder / "index")
    scale = 10 if quick else 1
    rows += _peer(folder, PEER_SAMPLES // scale) + _killed(folder, KILLED_SAMPLES // scale)
    return rows + _step(folder, STEP_SAMPLES // scale)


def _sizes(samples: int) -> list[int]:
    """Samples of each part, ten parts at least."""
    part = min(PART, samples // 10)
    return [min(part, samples - first) for first in range(0, samples, part)]


def _drawn(folder: Path, samples: int, kind: str, share: float, quick: bool) -> list[Row]:
    """Time, memory and coverage of drawing a share of the samples."""
    wanted = round(samples * share)
    print(f"case: {wanted:,} of {samples:,} samples, {kind}", flush=True)
    facts = _run(folder / "index", folder / "balanced", samples=str(wanted))
    shutil.rmtree(folder / "balanced")
    found = facts["summary"]["coverage"]
    path = f"{wanted:,} of {samples:,} x top-{synthetic.TOP_K}, {kind}"
    rare = {name: 100 * found[name]["rare_share"] for name in found}
    bits = {name: found[name]["entropy_bits"] for name in found}
    before = f"{rare['before']:.3g} % before, {found['before']['covered']:,} concepts"
    seconds, memory = facts["seconds"], facts["peak_gb"]
    cpu = f"whole path, {RANKS} ranks ({facts['cpu_seconds']:.0f} s of CPU)"
    halved = quick or rare["after"] <= rare["random"] / 2
    goal = "-" if quick else "<= 0.5 x"
    return [
        Row(path, cpu, seconds, "s", "goal", 300, "< 300 s", seconds < 300),
        Row(path, "peak memory of both ranks, mapped files in it", memory, "GB", "goal", 8, "< 8 GB", memory < 8),
        Row(path, "MPI bytes a rank", facts["bytes"] / 1e6, "MB", "concepts", synthetic.CONCEPTS * 8 / 1e6, "-", True),
        Row(path, f"under 100 samples; {before}", rare["after"], "%", "random draw", rare["random"], goal, halved),
        Row(
            path,
            "entropy after",
            bits["after"],
            "bits",
            "before",
            bits["before"],
            "more",
            bits["after"] > bits["before"],
        ),
        Row(path, "entropy of a random draw", bits["random"], "bits", "before", bits["before"], "-", True),
    ]


def _peer(folder: Path, samples: int) -> list[Row]:
    """The same in NumPy, on one core by CPU time, with everything in memory."""
    print(f"case: against NumPy, {samples:,} samples", flush=True)
    synthetic.write_index(folder / "index", _sizes(samples), "topical")
    index = ConceptIndex.open(folder / "index")
    matches, concept = np.asarray(index.matches), np.asarray(index.concept)
    shutil.rmtree(folder / "index")
    ids = np.random.default_rng(0).integers(0, 2**64, samples, np.uint64)
    seconds = []
    for way in (_compiled, _compiled, _numpy):  # the first one compiles
        start = time.process_time()
        drawn = way(matches, concept, ids, samples // 10)
        seconds.append(time.process_time() - start)
        assert np.count_nonzero(drawn) == samples // 10
    ours, peer = (samples / seconds[k] / 1e6 for k in (1, 2))
    path = f"against NumPy, {samples:,} x top-{synthetic.TOP_K}"
    return [
        Row(path, "counts, weights, keys, draw, one core", ours, "M samples/s", "NumPy", peer, "> 1 x", ours > peer)
    ]


def _compiled(matches: Any, concept: Any, ids: Any, wanted: int) -> Any:
    everything = np.ones(len(ids), bool)
    count = np.zeros(synthetic.CONCEPTS, np.int64)
    count_concepts(matches, concept, everything, count)
    weight = sample_weights(matches, concept, concept_values(count, "sum", 1), "sum")
    piece = Piece(0, 0, sample_keys(ids, weight, everything, salt("balance", 0)), np.zeros(len(ids), np.uint16))
    return lowest([piece], lambda k: ids, np.array([wanted]), ALONE).drawn(piece, ids)


def _numpy(matches: Any, concept: Any, ids: Any, wanted: int) -> Any:
    count = np.bincount(concept, minlength=synthetic.CONCEPTS)
    start = np.cumsum(matches, dtype=np.int64) - matches  # every sample has concepts
    weight = np.add.reduceat((1 / np.maximum(count, 1))[concept], start)
    key = np.random.default_rng(0).exponential(size=len(ids)) / weight
    drawn = np.zeros(len(ids), bool)
    drawn[np.argpartition(key, wanted)[:wanted]] = True
    return drawn


def _killed(folder: Path, samples: int) -> list[Row]:
    """Two ranks that are killed (SIGKILL) twice; the rerun has the fingerprint of an undisturbed draw."""
    print(f"case: killed while {samples:,} samples are drawn from", flush=True)
    synthetic.write_index(folder / "index", _sizes(samples), "topical")
    settings = {"samples": str(samples // 10)}
    whole = _run(folder / "index", folder / "balanced", **settings)["summary"]["fingerprint"]
    shutil.rmtree(folder / "balanced")
    work = folder / ".killed.parts"
    left = []
    for share in (0.2, 0.6):
        command = _command(folder / "index", folder / "killed", **settings)
        job = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        parts = len(list((folder / "index").glob("concepts-*.h5")))
        while len(list(work.glob("part-*.json"))) < share * parts and job.poll() is None:
            time.sleep(0.001)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        left.append(len(list(work.glob("part-*.json"))))
    found = _run(folder / "index", folder / "killed", **settings)["summary"]["fingerprint"]
    shutil.rmtree(folder / "killed")
    shutil.rmtree(folder / "index")
    measure = f"parts left after kills ({', '.join(map(str, left))} of {parts})"
    same = float(found == whole)
    return [
        Row(f"killed twice, {samples:,}", measure, left[-1], "parts", "fingerprints equal", same, "equal", same == 1)
    ]


def _step(folder: Path, samples: int) -> list[Row]:
    """The whole step with its corpus: weights, fates, and the index of the drawn rows."""
    print(f"case: the step with a corpus of {samples:,} samples", flush=True)
    sizes = [STEP_PART] * (samples // STEP_PART)
    fingerprint = synthetic.write_corpus(folder / "corpus", sizes)
    synthetic.write_index(folder / "index", sizes, "topical", fingerprint)
    facts = _run(folder / "index", folder / "balanced", corpus=str(folder / "corpus"), samples=str(samples // 10))
    path = f"step with its corpus, {samples:,} samples in {len(sizes)} parts"
    measure = f"{samples // 10:,} drawn, {RANKS} ranks ({facts['cpu_seconds']:.0f} s of CPU)"
    rate = samples / facts["seconds"]
    return [Row(path, measure, facts["seconds"], "s", "samples/s", rate, "-", True)]


def _command(index: Path, output: Path, **settings: str) -> list[str]:
    program = ["-m", "benchmarks.concepts.draw", str(index), str(output)]
    program += [f"{key}={value}" for key, value in settings.items()]
    return [str(MPIEXEC), "-n", str(RANKS), sys.executable, "-m", "mpi4py", *program]


def _run(index: Path, output: Path, **settings: str) -> dict[str, Any]:
    """Draw; what benchmarks/concepts/draw.py says of it."""
    job = subprocess.run(_command(index, output, **settings), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(job.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
