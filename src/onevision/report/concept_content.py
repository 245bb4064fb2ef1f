"""What the report on concepts shows, the same in the terminal and on the page: figures, tables, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.index import DRAWN, SAME_EMBEDDING, SAME_IMAGES
from onevision.concepts.balance.quotas import parse_quotas
from onevision.concepts.balance.summary import RARE, coverage
from onevision.concepts.names import SOURCES
from onevision.report.charts import percent
from onevision.report.concept_facts import ConceptFacts
from onevision.report.concept_measures import KINDS, SCORE_EDGES
from onevision.report.concept_samples import ShownSample
from onevision.report.page import Card

SHOWN = 12  # rows of a table of groups
TAIL = 20  # concepts that gained or lost most
NAMED = 40  # concepts that nobody has
FEW = 10  # samples: a second threshold of rare concepts, for small corpora
TOP = 0.01  # share of the concepts whose share of the matches is told
COLUMNS = {"before": "corpus", "after": "selection", "random": "random draw"}
RANK_HINT = (
    "Samples of the most frequent concept, the second, and so on, each set in its own order. The flatter, the more "
    "evenly concepts are spread."
)
CHANGE_TITLES = ("Concepts that gained most share", "Concepts that lost most share")
CHANGE_HINT = "Samples of a concept, and their share of all matches of the corpus and of the selection."
GROUP_HINT = "The rate is the share of a group's samples that is drawn."
SAMPLES_HINT = (
    "Chosen by the seed, not by hand; where there is a selection, half from it and half from the others. Are the "
    "concepts what the picture and the caption show?"
)
STEPS = {"corpus": "Corpus", "vocabulary": "Vocabulary", "concepts": "Concepts", "balance": "Selection"}
FATE_NAMES = ("drawn", "not drawn", "same embedding", "same images")


@dataclass(frozen=True)
class Change:
    """A concept in the corpus and in the selection: its samples, and their share of all matches."""

    name: str
    before: int
    after: int
    share_before: float
    share_after: float


@dataclass(frozen=True)
class Group:
    """Samples of one language, source or category; shares are of all of the corpus and of all that are drawn."""

    name: str
    samples: int
    duplicates: int
    drawn: int
    share: float
    drawn_share: float

    @property
    def rate(self) -> float:
        """Share of the samples that are drawn."""
        return self.drawn / max(self.samples, 1)


@dataclass(frozen=True)
class Quota:
    """A quota, and the share that it got; `available` is None where it was reached."""

    name: str
    asked: float
    drawn: float
    available: int | None

    @property
    def verdict(self) -> str:
        """Whether it was reached."""
        if self.available is None:
            return "reached"
        return f"not reached: there are only {self.available:,} samples without duplicates"


@dataclass(frozen=True)
class ScoreRow:
    """Scores of the samples of one language; quantiles to 0.01, None where no sample has a concept."""

    language: str
    samples: int
    without: int
    low: float | None  # tenth percentile of the nearest concept's
    median: float | None
    high: float | None  # ninetieth percentile
    last: float | None  # median of the last concept's

    @property
    def quantiles(self) -> list[str]:
        """All of them as they are shown."""
        return ["–" if value is None else f"{value:.2f}" for value in (self.low, self.median, self.high, self.last)]


def headline(facts: ConceptFacts) -> str:
    """One sentence on samples and concepts."""
    index = facts.index
    if facts.drawn is None:
        found = int(np.count_nonzero(index.count))
        return f"{index.samples:,} samples with {found:,} of {index.concepts:,} concepts; nothing is drawn yet"
    covered = facts.drawn["coverage"]["after"]["covered"]
    return f"{facts.drawn['drawn']:,} of {index.samples:,} samples, with {covered:,} of {index.concepts:,} concepts"


def spread(facts: ConceptFacts) -> str:
    """What was drawn from what, and how evenly concepts are spread in it, beside a random draw."""
    bits = {name: coverage(count, count)["entropy_bits"] for name, count in facts.counts.items()}
    if "after" not in bits:
        return f"Their concepts are spread with an entropy of {bits['before']:.2f} bits."
    fates = facts.measures.parts.sum(axis=0)
    duplicates = fates[SAME_EMBEDDING] + fates[SAME_IMAGES]
    return (
        f"Drawn from {facts.index.samples:,} samples, {duplicates:,} duplicates left out. "
        f"Concepts are spread with an entropy of {bits['after']:.2f} bits; in a random draw of as many samples with "
        f"{bits['random']:.2f}, in the corpus with {bits['before']:.2f}."
    )


def fact_rows(facts: ConceptFacts) -> list[tuple[str, str]]:
    """What the report is about: folders and fingerprints."""
    return [
        (title, f"{facts.folders[step]}, {facts.records[step]['summary']['fingerprint'][:12]}")
        for step, title in reversed(STEPS.items())
        if step in facts.records
    ]


def cards(facts: ConceptFacts) -> list[Card]:
    """The headline figures."""
    index, counts = facts.index, facts.counts
    told = {name: coverage(count, counts["before"]) for name, count in counts.items()}
    shown = told.get("after", told["before"])
    vocabulary = Card("Vocabulary", f"{index.concepts:,}", provenance(facts))
    top = {name: percent(top_share(count, counts["before"]), 1) for name, count in counts.items()}
    rows = [
        _samples_card(facts),
        Card("Concepts covered", f"{shown['covered']:,}", _beside(told, "covered")),
        Card("Entropy", f"{shown['entropy_bits']:.2f} bits", _beside(told, "entropy_bits", "{:.2f}")),
        Card(f"Under {RARE} samples", f"{shown['rare']:,}", _beside(told, "rare")),
        Card("Top 1 %", top.get("after", top["before"]), f"of all matches; {_compared(top)}".rstrip("; ")),
    ]
    return [*rows, vocabulary]


def provenance(facts: ConceptFacts) -> str:
    """Where the names of the vocabulary come from; a name may have several sources."""
    if facts.vocabulary is None:
        return "not known"
    bits = [int(np.count_nonzero(facts.vocabulary.provenance & 1 << k)) for k in range(len(SOURCES))]
    return ", ".join(f"{count:,} of {name}" for name, count in zip(SOURCES, bits, strict=True) if count)


def top_share(count: NDArray[np.int64], before: NDArray[np.int64]) -> float:
    """Share of the matches that the `TOP` most frequent concepts of those that `before` covers have."""
    concepts = -(-int(np.count_nonzero(before)) // round(1 / TOP))
    highest = np.partition(count, len(count) - concepts)[len(count) - concepts :] if concepts else count[:0]
    return int(highest.sum()) / max(int(count.sum()), 1)


def coverage_rows(facts: ConceptFacts) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The columns, and for each figure its name and its values."""
    counts = facts.counts
    before = counts["before"]
    covered = max(int(np.count_nonzero(before)), 1)
    told = {name: coverage(count, before) for name, count in counts.items()}
    whole = max(float(np.log2(facts.index.concepts)), 1e-9)
    under = {
        limit: [int(np.count_nonzero((before > 0) & (count < limit))) for count in counts.values()]
        for limit in (FEW, RARE)
    }
    rows = [
        ("Matches", [f"{one['matches']:,}" for one in told.values()]),
        ("Concepts covered", [f"{one['covered']:,}" for one in told.values()]),
        ("Entropy, bits", [f"{one['entropy_bits']:.3f}" for one in told.values()]),
        ("Entropy / log2 of vocabulary", [percent(one["entropy_bits"] / whole, 1) for one in told.values()]),
        *(
            (f"Fewer than {limit} samples", [f"{n:,} ({percent(n / covered, 1)})" for n in found])
            for limit, found in under.items()
        ),
        ("Matches of the top 1 %", [percent(top_share(one, before), 1) for one in counts.values()]),
    ]
    return [COLUMNS[name] for name in counts], rows


def coverage_hint(facts: ConceptFacts) -> str:
    """How to read the table of coverage."""
    counts = facts.counts
    covered = int(np.count_nonzero(counts["before"]))
    top = -(-covered // round(1 / TOP))
    first = (
        "A match is a sample with one of its concepts. Shares are of the concepts that the corpus covers, duplicates "
        f"left out; the top 1 % are the {top:,} most frequent ones of each column, and their share is that of all "
        "matches."
    )
    if "after" not in counts:
        return first
    even = int(counts["after"].sum()) / max(covered, 1)
    small = (
        f" The selection is small: spread evenly, its matches would be {even:,.1f} for each of {covered:,} concepts. "
        f"So nearly all have fewer than {RARE}; the concepts covered and the entropy tell more."
    )
    return (
        f"{first} A smaller set covers fewer concepts, however it is drawn: compare the selection with the random draw "
        f"of as many samples.{small if even < RARE else ''}"
    )


def changes(facts: ConceptFacts) -> tuple[list[Change], list[Change]]:
    """Concepts whose share of the matches grew most, and those that lost most; none without a selection."""
    if "after" not in facts.counts:
        return [], []
    counts = [facts.counts[name] for name in ("before", "after")]
    before, after = (count / max(int(count.sum()), 1) for count in counts)

    def rows(chosen: NDArray[np.int64]) -> list[Change]:
        return [
            Change(facts.name(c), int(counts[0][c]), int(counts[1][c]), float(before[c]), float(after[c]))
            for c in chosen.tolist()
        ]

    gained, lost = (np.argsort(loss, kind="stable")[:TAIL] for loss in (before - after, after - before))
    return rows(gained[after[gained] > before[gained]]), rows(lost[after[lost] < before[lost]])


def absent(facts: ConceptFacts) -> tuple[int, list[str]]:
    """How many concepts no sample has, and the names of some, evenly over the vocabulary."""
    none = np.flatnonzero(facts.index.count == 0)
    places = np.linspace(0, len(none) - 1, min(NAMED, len(none))).astype(np.int64)
    return len(none), [facts.name(c) for c in none[places].tolist()]


def groups(facts: ConceptFacts) -> list[tuple[str, list[Group]]]:
    """Samples of each language, source and category, most first; those of many names end in a row for the others."""
    if facts.corpus is None:
        return []
    return [
        (kind.title(), _groups(getattr(facts.corpus.index, names), facts.measures.groups[kind]))
        for kind, names in KINDS.items()
    ]


def quotas(facts: ConceptFacts) -> list[Quota]:
    """The quotas that were asked for."""
    if facts.drawn is None:
        return []
    found = facts.drawn
    tables = {kind: found[kind] for kind in ("language", "source")}
    asked = parse_quotas(found["settings"]["quotas"], tuple(tables["language"]), tuple(tables["source"]))
    short = {row["quota"]: row["available"] for row in found["shortfalls"]}
    return [
        Quota(f"{kind}.{name}", share, table[name]["after"] / max(found["drawn"], 1), short.get(f"{kind}.{name}"))
        for kind, table in tables.items()
        for name, share in getattr(asked, kind).items()
    ]


def score_rows(facts: ConceptFacts) -> list[ScoreRow]:
    """Scores by language, the language with most samples first; none where captions were searched for names."""
    if facts.index.match != "embedding":
        return []
    scores = facts.measures.scores
    names = facts.corpus.index.languages if facts.corpus else ("all",)
    order = np.argsort(-(scores.nearest.sum(axis=1) + scores.without), kind="stable")[:SHOWN]
    rows = []
    for k in order.tolist():
        low, median, high = (_quantile(scores.nearest[k], share) for share in (0.1, 0.5, 0.9))
        samples, without = int(scores.nearest[k].sum() + scores.without[k]), int(scores.without[k])
        rows.append(ScoreRow(names[k], samples, without, low, median, high, _quantile(scores.last[k], 0.5)))
    return rows


def score_hint(facts: ConceptFacts) -> str:
    """How many samples have no concept, and how to read the table of scores."""
    without, samples = int(facts.measures.scores.without.sum()), facts.index.samples
    if without:
        share = percent(without / samples, 1)
        told = f"{without:,} of {samples:,} samples ({share}) have no concept: they are drawn last."
    else:
        told = "Every sample has a concept."
    if facts.index.match != "embedding":
        return f"{told} Captions were searched for names: there are no scores."
    return (
        f"{told} Cosines of the nearest concept (median, and the tenth and ninetieth percentile) and of the last one "
        "(median). Where those of a language lie far below the others', the encoder hardly understands it, and its "
        "concepts are wrong: look at its samples below."
    )


def shown_concepts(facts: ConceptFacts, sample: ShownSample) -> list[tuple[str, str]]:
    """The names of a sample's concepts with their scores, which are empty where captions were searched for names."""
    scored = facts.index.match == "embedding"
    return [(facts.name(c), f"{score:.2f}" if scored else "") for c, score in sample.concepts]


def absent_hint(none: int, names: Sequence[str]) -> str:
    """How many concepts no sample has, and which are named."""
    return f"{none:,} concepts of the vocabulary; {len(names)} of them, evenly over it:" if none else "There is none."


def _samples_card(facts: ConceptFacts) -> Card:
    if facts.drawn is None:
        return Card("Samples", f"{facts.index.samples:,}", "nothing is drawn yet")
    fates = facts.measures.parts.sum(axis=0)
    share = percent(fates[DRAWN] / max(facts.index.samples, 1), 1)
    out = f"{fates[SAME_EMBEDDING]:,} duplicates by embedding and {fates[SAME_IMAGES]:,} by image hash left out"
    return Card("Drawn", f"{fates[DRAWN]:,}", f"of {facts.index.samples:,} samples ({share}); {out}")


def _beside(told: dict[str, dict[str, float]], key: str, form: str = "{:,}") -> str:
    return _compared({name: form.format(one[key]) for name, one in told.items()})


def _compared(values: dict[str, str]) -> str:
    """What the value of a selection is compared with."""
    return f"{values['before']} before, {values['random']} by a random draw" if "after" in values else ""


def _groups(names: Sequence[str], counts: NDArray[np.int64]) -> list[Group]:
    samples, drawn = max(int(counts.sum()), 1), max(int(counts[:, DRAWN].sum()), 1)

    def group(name: str, fates: NDArray[np.int64]) -> Group:
        out, own = int(fates[SAME_EMBEDDING] + fates[SAME_IMAGES]), int(fates[DRAWN])
        return Group(name, int(fates.sum()), out, own, int(fates.sum()) / samples, own / drawn)

    order = np.argsort(-counts.sum(axis=1), kind="stable").tolist()
    if len(order) <= SHOWN:
        return [group(names[k], counts[k]) for k in order]
    shown, others = order[: SHOWN - 1], order[SHOWN - 1 :]
    return [*(group(names[k], counts[k]) for k in shown), group(f"{len(others):,} others", counts[others].sum(axis=0))]


def _quantile(counts: NDArray[np.int64], share: float) -> float | None:
    """Middle of the bin of `SCORE_EDGES` in which a quantile lies."""
    total = int(counts.sum())
    if not total:
        return None
    place = int(np.searchsorted(np.cumsum(counts), share * total))
    return float(SCORE_EDGES[place : place + 2].mean())
