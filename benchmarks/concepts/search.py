"""How fast concepts are found: `python -m benchmarks.concepts.search [quick=1] [strict=1]`.

The peer is faiss's IndexFlatIP, which searches the same blocks of queries in turn with ours; each rate is the best of
the rounds, by the clock. Both use the threads that OMP_NUM_THREADS gives. All results are compared. faiss sums in
float32: where its ids differ, both answers are judged in float64, and two scores within 1e-6 of each other may be
swapped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from benchmarks.concepts import vectors
from benchmarks.results import Row, package_versions, show, write_results
from onevision.concepts.search.approximate import ApproximateSearch
from onevision.concepts.search.exact import ExactSearch

CONCEPTS, DIMENSION, QUERIES, K = 500_000, 1024, 1024, 20
REAL_CONCEPTS, REAL_QUERIES = 46_162, 4096
ROUNDS = 4
SWAPPED = 1e-6  # relative difference of two scores that float32 sums may order either way
ROOM = 2e9  # bytes beside the vocabulary
PEER = "faiss IndexFlatIP"

Search = Callable[[np.ndarray], np.ndarray]  # queries to ids


def rows(quick: bool = False) -> list[Row]:
    """Measure all; quick takes a twentieth of the concepts."""
    part = 20 if quick else 1
    found = memory(CONCEPTS // part)
    for name, make in (("random", vectors.random), ("clustered", vectors.clustered)):
        vocabulary, queries = make(CONCEPTS // part, DIMENSION, 1), make(QUERIES // (2 if quick else 1), DIMENSION, 2)
        found += exact(f"{len(vocabulary):,} x {DIMENSION:,}, {name}", vocabulary, queries)
        del vocabulary
    vocabulary, queries = vectors.real(REAL_CONCEPTS // part, REAL_QUERIES // part)
    name = f"{len(vocabulary):,} nouns x {vocabulary.shape[1]}, captions"
    return found + exact(name, vocabulary, queries) + approximate(name, vocabulary, queries)


def exact(name: str, vocabulary: np.ndarray, queries: np.ndarray) -> list[Row]:
    """Rates of the exact search and of faiss, how their results differ, and how many exact scores were needed."""
    import faiss

    path = f"exact top-{K}, {name}"
    peer = faiss.IndexFlatIP(vocabulary.shape[1])
    peer.add(vocabulary)
    search = ExactSearch(vocabulary)
    search.top(queries[:8], K)  # compiles
    ours, theirs, clock, processor = _in_turn(
        lambda block: search.top(block, K)[0], lambda block: peer.search(block, K)[1], queries
    )
    search = ExactSearch(vocabulary)
    search.top(queries, K)
    stats = search.stats
    swapped, wrong = differences(vocabulary, queries, ours, theirs)
    print(f"{path}: first pass {stats.first_pass}; {stats.scored / stats.queries:.0f} exact scores a query", flush=True)
    return [
        Row(path, "queries by the clock", clock[0], "queries/s", PEER, clock[1], ">= 1x; aim 2x", clock[0] >= clock[1]),
        Row(
            path, "queries by processor seconds", processor[0], "queries/s", PEER, processor[1], "ratio printed", True
        ),
        Row(path, "queries with other ids", wrong, "queries", "queries", len(queries), "0", wrong == 0),
        Row(
            path, "queries with neighbours swapped by faiss's rounding", swapped, "queries", "queries", len(queries),
            "printed", True,
        ),
        Row(
            path, "pairs that needed an exact score", stats.scored, "pairs", "pairs", stats.pairs, "fraction printed",
            True,
        ),
        Row(
            path, "queries that needed an exact pass over most concepts", stats.whole, "queries", "queries",
            stats.queries, "fraction printed", True,
        ),
    ]  # fmt: skip


def _in_turn(ours: Search, theirs: Search, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, list, list]:
    """Results of both, and the best rates of both: by the clock, and by processor seconds."""
    blocks = np.array_split(queries, ROUNDS)
    results, clock, processor = ([], []), ([], []), ([], [])
    for block in blocks:
        for side, call in enumerate((ours, theirs)):
            start, used = time.perf_counter(), time.process_time()
            results[side].append(call(np.ascontiguousarray(block)))
            clock[side].append(len(block) / (time.perf_counter() - start))
            processor[side].append(len(block) / (time.process_time() - used))
    return (
        np.concatenate(results[0]), np.concatenate(results[1]),
        [max(rates) for rates in clock], [max(rates) for rates in processor],
    )  # fmt: skip


def differences(vocabulary: np.ndarray, queries: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """Queries whose ids differ where float32 sums may swap two scores, and queries whose ids differ otherwise."""
    swapped = wrong = 0
    for query in np.flatnonzero((ours != theirs).any(axis=1)):
        mine, other = (
            vocabulary[ids[query]].astype(np.float64) @ queries[query].astype(np.float64) for ids in (ours, theirs)
        )
        close = np.abs(mine - other) <= SWAPPED * np.abs(mine)
        rising = np.diff(mine) > 2.0**-24 * np.abs(mine[1:])  # float32 scores tie where the float64 ones nearly do
        if close.all() and not rising.any():
            swapped += 1
        else:
            wrong += 1
    return swapped, wrong


def approximate(name: str, vocabulary: np.ndarray, queries: np.ndarray) -> list[Row]:
    """Recall and rate of the approximate search, beside the exact one."""
    search, peer = ApproximateSearch(vocabulary), ExactSearch(vocabulary)
    search.top(queries[:8], K)
    _, _, clock, _ = _in_turn(lambda block: search.top(block, K)[0], lambda block: peer.top(block, K)[0], queries)
    path, recall = f"approximate top-{K}, {name}", search.stats.recall or 0.0
    sampled = f"exact, {search.stats.sampled} queries"
    return [
        Row(path, f"recall@{K}", recall, "of the concepts", sampled, 1.0, "printed", True),
        Row(path, "queries by the clock", clock[0], "queries/s", "our exact search", clock[1], "ratio printed", True),
    ]


CHILD = """
import json, resource, sys, tempfile
import numpy as np
from onevision.concepts.search import open_search
from onevision.recipe import ConceptRecipe

count, dimension, k = map(int, sys.argv[1:4])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
rng = np.random.default_rng(0)
with tempfile.TemporaryFile() as file:
    for begin in range(0, count, 5000):
        file.write(rng.standard_normal((min(5000, count - begin), dimension), np.float32).astype(np.float16).tobytes())
    file.flush()
    mapped = np.memmap(file, np.float16, "r", shape=(count, dimension))
    search = open_search(mapped, ConceptRecipe())
    del mapped
    found = []
    for queries in map(int, sys.argv[4:]):
        search.top(rng.standard_normal((queries, dimension), np.float32), k)
        found.append(peak())
print(json.dumps(found))
"""


def memory(concepts: int) -> list[Row]:
    """Peak of a process of its own that opens a mapped float16 vocabulary and searches few queries, then many."""
    counts = (16, 2048)
    command = [sys.executable, "-c", CHILD, *map(str, (concepts, DIMENSION, K, *counts))]
    peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = concepts * DIMENSION * 4
    return [
        Row(
            f"memory, {concepts:,} x {DIMENSION:,}", f"peak after {count:,} queries", peak / 1e9, "GB",
            "vocabulary in float32", size / 1e9, "<= vocabulary + 2 GB", peak <= size + ROOM,
        )
        for count, peak in zip(counts, peaks, strict=True)
    ]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Measure, print, and write benchmarks/results/concepts-search.json."""
    settings = dict(text.partition("=")[::2] for text in arguments)
    quick = settings.get("quick") == "1"
    found = rows(quick)
    show("search for concepts", found)
    if not quick:
        path = write_results("concepts-search", found, package_versions("torch", "faiss-cpu", "numba", "numpy"))
        print(f"{sum(row.met for row in found)} of {len(found)} goals met; written to {path}")
    return 1 if settings.get("strict") == "1" and not all(row.met for row in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
