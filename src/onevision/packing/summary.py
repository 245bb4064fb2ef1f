"""What the pack step says of its packs: counts, fill, compression, histograms, and how alike the packs cost."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.corpus.index import CorpusIndex
from onevision.data.schedule import PATCH_COST
from onevision.packing.index import PackIndex

TABLES = {"category": "categories", "language": "languages", "source": "sources"}  # columns of a corpus: their names
BINS = 40
LARGEST = 10  # packs that are named


@numba.njit(cache=True, nogil=True)
def _columns(pack_start: Any, order: Any, lengths: Any, patches: Any, columns: Any) -> None:
    for pack in range(len(pack_start) - 1):
        tokens, vision, cost = 0, 0, 0
        for place in range(pack_start[pack], pack_start[pack + 1]):
            length = int(lengths[order[place]])
            tokens += length
            vision += patches[order[place]]
            cost += length * length
        columns[0, pack], columns[1, pack], columns[2, pack] = tokens, vision, cost


def pack_columns(
    pack_start: NDArray[np.int64], order: NDArray[np.int32], lengths: NDArray[np.int32], patches: NDArray[np.int32]
) -> dict[str, NDArray[np.int64]]:
    """tokens, patches and attention_cost of packs, int64 [M] each; pack m holds the samples
    order[pack_start[m]:pack_start[m + 1]] of these `lengths` and `patches`.
    """
    columns = np.empty((3, len(pack_start) - 1), np.int64)
    _columns(pack_start, order, lengths, patches, columns)
    return dict(zip(("tokens", "patches", "attention_cost"), columns, strict=True))


def part_facts(lengths: NDArray[np.int32], tables: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Of the samples of a part: how many have each length, and the tokens of each number of each of the `tables`."""
    facts = {name: np.bincount(numbers, lengths).astype(np.int64).tolist() for name, numbers in tables.items()}
    return {"lengths": np.bincount(lengths).tolist(), **facts}


def summarise(index: PackIndex, known: list[dict[str, Any]], corpus: CorpusIndex) -> dict[str, Any]:
    """The summary of packs; `known` are the `part_facts` of their parts."""
    tokens, patches = np.asarray(index.tokens), np.asarray(index.patches)
    attention = np.asarray(index.attention_cost)
    size = np.diff(index.pack_start)
    cost = attention + PATCH_COST * patches.astype(np.int64)
    packs, samples, real, capacity = index.packs, index.samples, int(tokens.sum(dtype=np.int64)), index.sequence_length
    lengths = _total([part["lengths"] for part in known])
    longest = len(lengths) - 1
    bounds = [-(-real // capacity)]
    bounds += [-(-int(patches.sum(dtype=np.int64)) // index.max_patches)] if index.max_patches else []
    bounds += [-(-int(attention.sum()) // index.max_attention_cost)] if index.max_attention_cost else []
    bin_tokens = -(-longest // BINS)
    padded = np.concatenate([lengths, np.zeros(-len(lengths) % bin_tokens, np.int64)])
    counts = padded.reshape(-1, bin_tokens).sum(axis=1)
    return {
        "packs": packs,
        "samples": samples,
        "tokens": real,
        "fill": real / (packs * capacity),
        "lower_bound_packs": max(bounds),
        "bounds": {name: getattr(index, name) for name in ("sequence_length", "max_patches", "max_attention_cost")},
        "mean_samples_per_pack": samples / packs,
        "mean_tokens_per_pack": real / packs,
        "compression": {  # slots of one sample a row, padded, for each slot of a pack
            "padded_to_longest": samples * longest / (packs * capacity),
            "padded_to_sequence_length": samples / packs,
        },
        "cost": _spread(cost),
        "attention_cost": _spread(attention),
        "patches": _spread(patches),
        "length_histogram": {"edges": (bin_tokens * np.arange(len(counts) + 1)).tolist(), "counts": counts.tolist()},
        "fill_histogram": _histogram(tokens / capacity, np.arange(21) / 20),
        "samples_histogram": _histogram(size, _edges(int(size.max()))),
        "patches_histogram": _histogram(patches, _edges(int(patches.max()))),
        "attention_cost_histogram": _histogram(attention, _edges(int(attention.max()))),
        "cost_histogram": _histogram(cost / cost.mean(), np.arange(BINS + 1) / BINS * max(2, cost.max() / cost.mean())),
        "largest_packs": [
            {
                "pack": int(pack),
                "samples": int(size[pack]),
                "tokens": int(tokens[pack]),
                "patches": int(patches[pack]),
                "attention_cost": int(attention[pack]),
                "cost_to_mean": float(cost[pack] / cost.mean()),
            }
            for pack in np.lexsort([np.arange(packs), -cost])[:LARGEST]
        ],
        **{
            f"{name}_tokens": _named(getattr(corpus, names), _total([part[name] for part in known]))
            for name, names in TABLES.items()
        },
    }


def _total(counts: list[list[int]]) -> NDArray[np.int64]:
    """Sum of lists of counts; what a shorter list does not reach is zero."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for row in counts:
        total[: len(row)] += row
    return total


def _named(names: tuple[str, ...], totals: NDArray[np.int64]) -> dict[str, int]:
    return {name: int(total) for name, total in zip(names, totals, strict=False) if total}


def _spread(values: NDArray[Any]) -> dict[str, float]:
    """Mean, and standard deviation, 99th percentile and maximum as multiples of it."""
    mean = float(values.mean())
    if not mean:
        return {"mean": 0.0, "std": 0.0, "p99": 0.0, "max": 0.0}
    p99 = float(np.quantile(values, 0.99))
    return {"mean": mean, "std": float(values.std()) / mean, "p99": p99 / mean, "max": float(values.max()) / mean}


def _edges(most: int) -> NDArray[np.int64]:
    """Edges of at most BINS bins of equal whole width that hold 0 to `most`."""
    width = most // BINS + 1
    return width * np.arange(most // width + 2)


def _histogram(values: NDArray[Any], edges: NDArray[Any]) -> dict[str, list[float]]:
    """Counts between neighbouring edges; the last bin includes its upper edge."""
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
