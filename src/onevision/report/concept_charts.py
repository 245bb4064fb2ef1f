"""The charts of the report on concepts: frequencies by rank, and how many concepts and samples are in which range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onevision.report.charts import Axis, Chart, Comparison, axis, path
from onevision.report.concept_content import COLUMNS
from onevision.report.concept_facts import ConceptFacts
from onevision.report.concept_measures import SCORE_EDGES, WEIGHT_EDGES

POINTS = 300  # of a curve


@dataclass(frozen=True)
class RankCurves:
    """Samples of a concept by its rank, on logarithmic axes; `curves` are path data by the names of `COLUMNS`."""

    x: Axis
    y: Axis
    curves: dict[str, str]
    ranks: list[tuple[int, list[int | None]]]  # some ranks, and the samples at each for every curve


def rank_curves(facts: ConceptFacts) -> RankCurves | None:
    """The curves; None where no sample has a concept."""
    ordered = {name: -np.sort(-count[count > 0]) for name, count in facts.counts.items()}
    longest = max(map(len, ordered.values()))
    if not longest:
        return None
    highest = max(int(counts[0]) for counts in ordered.values() if len(counts))
    x, y = (axis(1, max(most, 2), "{:,.0f}", log=True, count=6) for most in (longest, highest))
    curves = {}
    for name, counts in ordered.items():
        if len(counts):
            ranks = np.unique(np.geomspace(1, len(counts), POINTS).round().astype(np.int64))
            curves[name] = path(x, y, ranks.tolist(), counts[ranks - 1].tolist(), POINTS)
    told = [10**power for power in range(12) if 10**power <= longest]
    rows = [
        (rank, [int(counts[rank - 1]) if rank <= len(counts) else None for counts in ordered.values()]) for rank in told
    ]
    return RankCurves(x, y, curves, rows)


def count_chart(facts: ConceptFacts) -> Comparison:
    """How many concepts have how many samples."""
    counts = {name: count[count > 0] for name, count in facts.counts.items()}
    highest = max((int(count.max()) for count in counts.values() if len(count)), default=1)
    edges = np.array([step * 10**power for power in range(19) for step in (1, 2, 5)], np.int64)
    edges = edges[: int(np.searchsorted(edges, highest, side="right")) + 1]
    table = np.stack([np.histogram(count, edges)[0] for count in counts.values()], axis=1)
    labels = [
        f"{low:,}" if high == low + 1 else f"{low:,} – {high - 1:,}"
        for low, high in zip(edges.tolist(), edges[1:].tolist(), strict=False)
    ]
    return Comparison(
        "Samples of a concept",
        "concepts",
        "Concepts by the number of samples that have them; those that nobody has are left out.",
        tuple(COLUMNS[name] for name in counts),
        [f"{low:,}" for low in edges[:-1].tolist()],
        labels,
        list(map(tuple, table.tolist())),
        log=True,
    )


def weight_chart(facts: ConceptFacts) -> Comparison | None:
    """How many samples have which weight, and how many of them are drawn; None without a selection."""
    table = facts.measures.weights
    filled = np.flatnonzero(table[:, 0])
    if facts.balance is None or not len(filled):
        return None
    first, last = int(filled[0]), int(filled[-1]) + 1
    lows, highs = WEIGHT_EDGES[first:last].tolist(), WEIGHT_EDGES[first + 1 : last + 1].tolist()
    return Comparison(
        "Weight and draw",
        "samples",
        "Samples by their weight, duplicates left out, and those of them that are drawn: the rarer its concepts, the "
        "heavier a sample, and the more of its kind are drawn.",
        ("all", "drawn"),
        [f"{low:g}" for low in lows],
        [f"{low:g} – {high:g}" for low, high in zip(lows, highs, strict=True)],
        list(map(tuple, table[first:last].tolist())),
    )


def score_charts(facts: ConceptFacts) -> list[Chart]:
    """Scores of the first and of the last concept of samples; none where captions were searched for names."""
    if facts.index.match != "embedding":
        return []
    scores, top_k = facts.measures.scores, facts.index.top_k
    shown = [_score_chart("Nearest concept", scores.nearest, "Samples by the cosine of their nearest concept.")]
    if top_k > 1:
        hint = f"Samples by the cosine of concept {top_k}, the last that counts."
        shown.append(_score_chart(f"Concept {top_k}", scores.last, hint))
    return shown if scores.nearest.any() else []


def _score_chart(title: str, counts: NDArray[np.int64], hint: str) -> Chart:
    counted: dict[str, list[float]] = {"edges": SCORE_EDGES.tolist(), "counts": counts.sum(axis=0).tolist()}
    return Chart(title, "samples", counted, "{:.2f}", hint)
