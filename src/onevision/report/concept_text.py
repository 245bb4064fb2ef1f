"""The report on concepts for a terminal; readable at 80 columns and where it is piped."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from onevision.report import concept_charts as charts
from onevision.report import concept_content as content
from onevision.report import concept_making as making
from onevision.report.charts import Comparison, percent
from onevision.report.concept_content import Change
from onevision.report.concept_facts import ConceptFacts
from onevision.report.concept_samples import ShownSample
from onevision.report.text import print_chart, print_overview, print_table, print_title

NAME = 30  # characters of a concept's name in a table


def print_report(facts: ConceptFacts, console: Console) -> None:
    """Print the report."""
    print_overview(console, content.headline(facts), content.cards(facts), content.fact_rows(facts), facts.notes)
    columns, rows = content.coverage_rows(facts)
    print_title(console, "Coverage", content.coverage_hint(facts))
    print_table(console, ["", *columns], [[name, *values] for name, values in rows])
    _ranks(console, facts)
    _comparison(console, charts.count_chart(facts))
    _tail(console, facts)
    _groups(console, facts)
    if weights := charts.weight_chart(facts):
        _comparison(console, weights)
    for chart in charts.score_charts(facts):
        print_chart(console, chart)
    _scores(console, facts)
    _samples(console, facts)
    print_title(console, "How it was made", "")
    for name, value in making.settings(facts):
        console.print(Text(f"{name:<22}{value}"), soft_wrap=True)
    console.print()
    for row in making.lineage(facts):
        parts = [row.folder, row.fingerprint[:12], *([f"from {row.made_from}"] if row.made_from else []), row.seconds]
        console.print(Text(f"{row.step:<22}{', '.join(parts)}"), soft_wrap=True)


def _ranks(console: Console, facts: ConceptFacts) -> None:
    if found := charts.rank_curves(facts):
        print_title(console, "Samples by rank", content.RANK_HINT)
        cells = [[f"{rank:,}", *("–" if n is None else f"{n:,}" for n in counts)] for rank, counts in found.ranks]
        print_table(console, ["concept", *(content.COLUMNS[name] for name in found.curves)], cells)


def _comparison(console: Console, shown: Comparison) -> None:
    print_title(console, shown.title, shown.hint)
    cells = [[label, *(f"{n:,}" for n in counts)] for label, counts in zip(shown.labels, shown.counts, strict=True)]
    print_table(console, ["", *shown.names], cells)


def _tail(console: Console, facts: ConceptFacts) -> None:
    for title, rows in zip(content.CHANGE_TITLES, content.changes(facts), strict=True):
        if rows:
            print_title(console, title, content.CHANGE_HINT)
            print_table(console, ["", "corpus", "selection", "share", "of selection"], list(map(_change, rows)))
    none, names = content.absent(facts)
    print_title(console, "Concepts that no sample has", content.absent_hint(none, names))
    console.print(Text(", ".join(names)))


def _change(row: Change) -> list[str]:
    shares = [percent(share, 3) for share in (row.share_before, row.share_after)]
    return [row.name[:NAME], f"{row.before:,}", f"{row.after:,}", *shares]


def _groups(console: Console, facts: ConceptFacts) -> None:
    for title, rows in content.groups(facts):
        print_title(console, f"Samples by {title.lower()}", "" if facts.balance is None else content.GROUP_HINT)
        if facts.balance is None:
            cells = [[row.name, f"{row.samples:,}", percent(row.share, 1)] for row in rows]
            print_table(console, ["", "samples", "share"], cells)
            continue
        cells = [
            [row.name, f"{row.samples:,}", percent(row.share, 1), f"{row.duplicates:,}"]
            + [f"{row.drawn:,}", percent(row.drawn_share, 1), percent(row.rate, 1)]
            for row in rows
        ]
        print_table(console, ["", "samples", "share", "duplicates", "drawn", "of drawn", "rate"], cells)
    if asked := content.quotas(facts):
        print_title(console, "Quotas", "")
        cells = [[row.name, percent(row.asked, 1), percent(row.drawn, 1), row.verdict] for row in asked]
        print_table(console, ["", "asked", "drawn", ""], cells)


def _scores(console: Console, facts: ConceptFacts) -> None:
    rows = content.score_rows(facts)
    print_title(console, "Scores by language", content.score_hint(facts))
    if rows:
        cells = [[row.language, f"{row.samples:,}", f"{row.without:,}", *row.quantiles] for row in rows]
        print_table(console, ["", "samples", "no concept", "10 %", "nearest", "90 %", "last"], cells)


def _samples(console: Console, facts: ConceptFacts) -> None:
    if not facts.samples:
        return
    print_title(console, f"{len(facts.samples)} samples", content.SAMPLES_HINT)
    for sample in facts.samples:
        console.print()
        console.print(Text(f"{sample.id} ({sample.language}){_fate(sample)}", style="bold"), soft_wrap=True)
        console.print(Text(sample.damage or sample.caption))
        names = [f"{name} {score}".rstrip() for name, score in content.shown_concepts(facts, sample)]
        names += [f"{sample.more:,} more"] if sample.more else []
        console.print(Text(", ".join(names) or "no concept", style="blue"))


def _fate(sample: ShownSample) -> str:
    if sample.fate is None or sample.weight is None:
        return ""
    return f"  {content.FATE_NAMES[sample.fate]}, weight {sample.weight:.3g}"
