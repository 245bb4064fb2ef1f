"""Draw from a synthetic concept index, alone or as one of several MPI ranks; started in a process of its own.

    python -m benchmarks.concepts.draw INDEX OUTPUT [samples=…] [weighting=…] [threshold=…]
    python -m benchmarks.concepts.draw INDEX OUTPUT corpus=FOLDER [samples=…]

Without a corpus, which would be larger than what it is about, ids are hashes of rows and the selection is written as
weights and fates alone; with one, the whole step runs. Rank 0 ends with one line of JSON: seconds, peak memory of all
ranks, bytes that one rank exchanges over MPI, and the summary.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.packing.pack import CountingRanks
from onevision.concepts.balance.build import build_balance
from onevision.concepts.balance.index import COUNTS, write_balance_master, write_balance_part
from onevision.concepts.balance.quotas import Quotas
from onevision.concepts.balance.selection import Candidates, Selection
from onevision.concepts.balance.summary import coverage
from onevision.concepts.index import ConceptIndex
from onevision.ranks import Ranks, find_ranks
from onevision.recipe import ConceptRecipe, DataRecipe, Recipe
from onevision.steps import run_parts

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def main(arguments: list[str]) -> None:
    """See the head comment."""
    index, output = (Path(text) for text in arguments[:2])
    settings: dict[str, Any] = dict(text.split("=", 1) for text in arguments[2:])
    settings |= {name: int(settings[name]) for name in ("samples", "threshold") if name in settings}
    corpus = settings.pop("corpus", "")
    concepts = ConceptRecipe(index=str(index), **settings)
    ranks = CountingRanks(find_ranks().communicator)
    start = time.monotonic()
    if corpus:  # shards that are elsewhere are not looked for
        recipe = Recipe(data=DataRecipe(corpus=corpus, shards="elsewhere"), concepts=concepts)
        summary = build_balance(recipe, output, ranks, report=lambda line: None).summary["balance"]
    else:
        summary = draw(concepts, output, ranks)
    seconds, sent = time.monotonic() - start, ranks.bytes
    used = resource.getrusage(resource.RUSAGE_SELF)
    own = ranks.gather([used.ru_maxrss / 1024**2, used.ru_utime + used.ru_stime])
    if ranks.rank == 0:
        peak, cpu = np.sum(own, axis=0).tolist()
        facts = {"seconds": seconds, "peak_gb": peak, "cpu_seconds": cpu, "bytes": sent, "ranks": ranks.size}
        print("\n" + json.dumps({**facts, "summary": summary}), flush=True)


def draw(concepts: ConceptRecipe, output: Path, ranks: Ranks) -> dict[str, Any]:
    """The balance step without its corpus; its summary."""
    index = ConceptIndex.open(concepts.index)
    start = np.cumsum([0, *(len(piece) for piece in index.matches.pieces)])
    none = np.zeros(len(index), np.int16)

    def ids(k: int) -> NDArray[np.uint64]:
        value = np.arange(start[k], start[k + 1], dtype=np.uint64) * _GAMMA
        return value ^ value >> np.uint64(29)

    candidates = Candidates(index, start, ids, none, none, ("",), ("",))
    made: list[Selection] = []

    def prepare(work: Path) -> None:
        made.append(Selection(candidates, concepts, Quotas({}, {}), ranks))

    def build(folder: Path, k: int) -> dict[str, Any]:
        return {"fingerprint": write_balance_part(folder, k, *made[0].part(k))}

    def finish(folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        counts = {name: getattr(made[0], name) for name in COUNTS}
        attributes = {"samples": len(index), "drawn": made[0].drawn, "corpus": "", "index": "", "vocabulary": ""}
        fingerprint = write_balance_master(folder, [row["fingerprint"] for row in known], counts, attributes, {})
        told = {name.removeprefix("count_"): coverage(counts[name], counts[COUNTS[0]]) for name in COUNTS}
        return {"fingerprint": fingerprint, "drawn": made[0].drawn, "before": len(index), "coverage": told}

    inputs = {"index": index.fingerprint, "samples": concepts.samples, "weighting": concepts.weighting}
    return run_parts("balance", output, inputs, index.parts, build, finish, ranks, prepare).summary


if __name__ == "__main__":
    main(sys.argv[1:])
