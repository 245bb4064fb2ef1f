"""Pack a synthetic corpus, alone or as one of several MPI ranks; the benchmarks start it in a process of its own.

    python -m benchmarks.packing.pack CORPUS OUTPUT [max_patches=…] [max_attention_cost=…] [part_samples=…]

Rank 0 ends with one line of JSON: seconds, peak memory of all ranks, bytes that one rank exchanges over MPI, summary.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.packing.synthetic import Lengths, attributes
from onevision.packing.build import pack_corpus
from onevision.ranks import Ranks, find_ranks
from onevision.recipe import DataRecipe


class CountingRanks(Ranks):
    """Ranks that count the bytes of what they send each other."""

    bytes = 0

    def first(self, value: Any) -> Any:
        found = super().first(value)
        self.bytes += len(pickle.dumps(found)) if self.communicator else 0
        return found

    def gather(self, value: Any) -> list[Any]:
        found = super().gather(value)
        self.bytes += len(pickle.dumps(found)) if self.communicator else 0
        return found

    def sum(self, values: Any) -> Any:
        self.bytes += values.nbytes if self.communicator else 0
        return super().sum(values)


def main(arguments: list[str]) -> None:
    """See the head comment."""
    corpus, output = (Path(text) for text in arguments[:2])
    settings = {key: int(value) for key, value in (text.split("=") for text in arguments[2:])}
    part_samples = settings.pop("part_samples", 1_000_000)
    data = DataRecipe(pack_part_samples=part_samples, **settings)
    ranks = CountingRanks(find_ranks().communicator)
    start = time.monotonic()
    index = Lengths.open(corpus)
    own = attributes(len(index), data.sequence_length, part_samples=part_samples, **_bounds(settings))
    result = pack_corpus(index, own, data, output, ranks, report=lambda line: None)  # type: ignore[arg-type]
    seconds, sent = time.monotonic() - start, ranks.bytes
    peaks = ranks.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
    if ranks.rank == 0:
        facts = {"seconds": seconds, "peak_gb": sum(peaks), "bytes": sent, "ranks": ranks.size}
        print("\n" + json.dumps({**facts, "summary": result.summary}), flush=True)


def _bounds(settings: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in settings.items() if name.startswith("max_")}


if __name__ == "__main__":
    main(sys.argv[1:])
