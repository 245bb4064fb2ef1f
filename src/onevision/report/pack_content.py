"""What the report on packs shows, the same in the terminal and on the page: figures, charts, tables, sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.data.schedule import PATCH_COST
from onevision.progress import duration
from onevision.report.charts import Chart, in_percent, percent
from onevision.report.dealing import Dealing
from onevision.report.pack_facts import PackFacts
from onevision.report.page import Card

SHOWN = 12  # rows of a table of tokens
MILLION = 1_000_000
BOUNDS = {
    "sequence_length": "longer than data.sequence_length",
    "max_patches": "more patches than data.max_patches",
    "max_attention_cost": "more attention cost than data.max_attention_cost",
}


@dataclass(frozen=True)
class Padding:
    """A way to lay out the samples: rows of `row_tokens` tokens each, of all of which the `share` is real."""

    name: str
    rows: int
    row_tokens: int
    slots: int
    share: float
    compression: float  # its slots for each slot of the packs


@dataclass(frozen=True)
class Tokens:
    """Tokens of one category, language or source, and their share of all."""

    name: str
    tokens: int
    share: float


@dataclass(frozen=True)
class LeftOut:
    """Samples that are in no pack for one reason, and the file that lists them."""

    reason: str
    samples: int
    listed: Path


def headline(facts: PackFacts) -> str:
    """One sentence on samples, packs, tokens."""
    summary = facts.summary
    return f"{summary['samples']:,} samples with {summary['tokens']:,} tokens in {summary['packs']:,} packs"


def fill_percent(share: float) -> str:
    """A share in percent with two digits, or as many more as tell it from 100 %."""
    digits = 2
    while share < 1 and round(100 * share, digits) >= 100 and digits < 8:
        digits += 1
    return percent(share, digits)


def above_bound(facts: PackFacts) -> str:
    """How far the number of packs is from the lower bound, and what that bound is made of."""
    summary = facts.summary
    packs, bound = summary["packs"], summary["lower_bound_packs"]
    by_tokens = bound == -(-summary["tokens"] // facts.sequence_length)
    made_of = "tokens" if by_tokens else "patches or attention cost"
    if packs == bound:
        return f"no packing has fewer packs (bound by {made_of})"
    return f"{packs - bound:,} ({percent(packs / bound - 1, 3)}) above the lower bound by {made_of}"


def fact_rows(facts: PackFacts) -> list[tuple[str, str]]:
    """What the packs were made with."""
    inputs, bounds = facts.packs["inputs"], facts.summary["bounds"]
    limits = [f"{bounds['sequence_length']:,} tokens"]
    limits += [f"{bounds['max_patches']:,} patches"] if bounds["max_patches"] else []
    limits += [f"attention cost {bounds['max_attention_cost']:,}"] if bounds["max_attention_cost"] else []
    return [
        ("Packs", f"{facts.folder}, {facts.summary['fingerprint'][:12]}"),
        ("A pack has room for", ", ".join(limits)),
        ("Corpus", f"{facts.corpus_folder}, {inputs['corpus'][:12]}"),
        ("Made", f"in {duration(facts.packs['seconds'])}, seed {inputs['seed']}"),
    ]


def cards(facts: PackFacts) -> list[Card]:
    """The headline figures."""
    summary, compression = facts.summary, facts.summary["compression"]
    rows = [
        Card("Fill", fill_percent(summary["fill"]), f"{summary['mean_tokens_per_pack']:,.0f} tokens a pack"),
        Card("Packs", f"{summary['packs']:,}", above_bound(facts)),
        Card("Samples", f"{summary['samples']:,}", f"{summary['mean_samples_per_pack']:.1f} a pack"),
        Card("Compression", f"{compression['padded_to_longest']:.2f} x", "against padding to the longest sample"),
    ]
    if shown := typical_dealing(facts):
        note = f"over {shown.ranks} ranks, {shown.global_batch_size:,} packs a step; dealt at random "
        rows.append(Card("Spread of cost", percent(shown.spread, 2), note + percent(shown.random_spread, 1)))
    out = left_out(facts)
    rejected = sum(row.samples for row in out) - summary["overlong"]
    known = f"{rejected:,} rejected" if facts.corpus else "rejects not known"
    rows.append(Card("Left out", f"{sum(row.samples for row in out):,}", f"{known}, {summary['overlong']:,} over-long"))
    return rows


def typical_dealing(facts: PackFacts) -> Dealing | None:
    """Of what was measured the one with 16 ranks, if there is, and most nearly 128 packs a step."""
    order = sorted(facts.dealings, key=lambda row: (row.ranks != 16, abs(row.global_batch_size - 128)))
    return order[0] if order else None


def fill_charts(facts: PackFacts) -> list[Chart]:
    """How full packs are, and how many samples they hold."""
    summary = facts.summary
    full = summary["fill_histogram"]["counts"][-1]
    return [
        Chart(
            "Fill",
            "packs",
            in_percent(summary["fill_histogram"]),
            "{:.0f} %",
            f"Packs by the share of their {facts.sequence_length:,} tokens that is real; the rest is padding, which "
            f"costs as much. The further right the better: {full:,} of {summary['packs']:,} are at least 95 % full.",
            trim=False,
        ),
        Chart(
            "Samples a pack",
            "packs",
            summary["samples_histogram"],
            "{:,.0f}",
            "Packs by the number of samples that share them. Far left are packs of one long sample, far right packs of "
            "many short ones.",
        ),
    ]


def length_chart(facts: PackFacts) -> Chart:
    """How long samples are."""
    return Chart(
        "Sample length",
        "samples",
        facts.summary["length_histogram"],
        "{:,.0f}",
        "Samples by tokens of text and images. The further left of the longest most of them are, the more padding "
        "would waste, and the more packing gains.",
    )


def cost_charts(facts: PackFacts) -> list[Chart]:
    """What packs ask of a device beyond their tokens."""
    summary = facts.summary
    charts = []
    if summary["patches"]["max"]:
        hint = "Packs by image patches. The one furthest right decides how much memory the vision tower needs."
        charts.append(Chart("Image patches", "packs", summary["patches_histogram"], "{:,.0f}", hint))
    attention, form = summary["attention_cost_histogram"], "{:,.0f}"
    if attention["edges"][-1] >= MILLION:
        attention = {"edges": [edge / MILLION for edge in attention["edges"]], "counts": attention["counts"]}
        form = "{:,.1f} M"
    return [
        *charts,
        Chart(
            "Attention cost",
            "packs",
            attention,
            form,
            "Packs by the sum of their squared sample lengths. Few long samples cost more than many short ones of as "
            "many tokens.",
        ),
        Chart(
            "Cost, relative to the mean",
            "packs",
            summary["cost_histogram"],
            "{:.2f}",
            f"Packs by attention cost and {PATCH_COST:,} for each image patch, as a multiple of the mean. The closer "
            "all are to 1, the easier it is to give ranks alike to do.",
        ),
    ]


def cost_rows(facts: PackFacts) -> list[tuple[str, dict[str, float]]]:
    """Mean, and standard deviation, 99th percentile and maximum as multiples of it."""
    summary = facts.summary
    rows = [("Image patches", "patches"), ("Attention cost", "attention_cost"), ("Cost", "cost")]
    return [(name, summary[key]) for name, key in rows if summary[key]["max"]]


def paddings(facts: PackFacts) -> list[Padding]:
    """Packs beside what they replace: one sample a row, padded."""
    summary, compression = facts.summary, facts.summary["compression"]
    packs, samples, capacity = summary["packs"], summary["samples"], facts.sequence_length
    longest = round(compression["padded_to_longest"] * packs * capacity / samples)

    def row(name: str, rows: int, row_tokens: int, times: float) -> Padding:
        return Padding(name, rows, row_tokens, rows * row_tokens, summary["tokens"] / (rows * row_tokens), times)

    return [
        row("Packs", packs, capacity, 1.0),
        row("Padded to the longest", samples, longest, compression["padded_to_longest"]),
        row("Padded to sequence_length", samples, capacity, compression["padded_to_sequence_length"]),
    ]


PADDING_HINT = (
    "Slots are the tokens that a device works through, padding included: with one sample a row it would work through "
    "so many times as many as with packs."
)
LARGEST_HINT = "The packs that cost most: the rank that gets one has most to do."


def dealing_hint(facts: PackFacts) -> str:
    """How to read the table of dealings, or why there is none."""
    if not facts.dealings:
        return "There are too few packs to measure it: they do not fill a step of any global batch size that was tried."
    steps = max(row.steps for row in facts.dealings)
    return (
        "Cost of the dearest less that of the cheapest data-parallel rank in a step, of the mean: packs dealt by the "
        f"loader, and in brackets dealt at random. Averages over up to {steps} drawn steps. With one pack a rank there "
        "is nothing to choose. Linear layers cost every pack the same and are not in it: in seconds the spread is "
        "smaller."
    )


def waiting(facts: PackFacts) -> str:
    """What the spread means for ranks, by the typical dealing; nothing where nothing was measured."""
    shown = typical_dealing(facts)
    if shown is None:
        return ""
    return (
        f"A step ends with its dearest rank. Of {shown.ranks} ranks with {shown.global_batch_size:,} packs a step an "
        f"average one has {percent(shown.waiting, 2)} less to do than that, and waits for it; with packs dealt at "
        f"random it is {percent(shown.random_waiting, 1)}."
    )


def dealing_table(facts: PackFacts) -> tuple[list[int], list[tuple[int, list[Dealing | None]]]]:
    """The numbers of ranks, and for each global batch size what was measured for each of them."""
    measured = {(row.global_batch_size, row.ranks): row for row in facts.dealings}
    ranks = sorted({row.ranks for row in facts.dealings})
    sizes = sorted({row.global_batch_size for row in facts.dealings})
    return ranks, [(size, [measured.get((size, count)) for count in ranks]) for size in sizes]


def token_tables(facts: PackFacts) -> list[tuple[str, list[Tokens]]]:
    """Tokens of each category, language and source, most first; those of many names end in a row for the others."""
    return [
        (title, _tokens(facts.summary[f"{key}_tokens"]))
        for title, key in (("Category", "category"), ("Language", "language"), ("Source", "source"))
    ]


def left_out(facts: PackFacts) -> list[LeftOut]:
    """Rejects of the corpus by reason, then over-long samples by the bound that they break."""
    rejects: dict[str, Any] = facts.corpus["summary"]["rejects_by_reason"] if facts.corpus else {}
    rows = [LeftOut(name, count, facts.ledgers["rejected"]) for name, count in rejects.items()]
    rows += [
        LeftOut(BOUNDS.get(name, name), count, facts.ledgers["overlong"])
        for name, count in facts.summary["overlong_by_reason"].items()
    ]
    return rows


def left_out_hint(facts: PackFacts) -> str:
    """What the rows of `left_out` are, or that there are none."""
    if left_out(facts):
        return "Samples that are in no pack, by the reason; the file lists each of them by its id."
    return "Every sample of the corpus is in a pack." if facts.corpus is None else "Nothing was left out."


def _tokens(counts: dict[str, int]) -> list[Tokens]:
    total = sum(counts.values()) or 1
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(rows) > SHOWN:
        others = rows[SHOWN - 1 :]
        rows = [*rows[: SHOWN - 1], (f"{len(others):,} others", sum(count for _, count in others))]
    return [Tokens(name, count, count / total) for name, count in rows]
