"""The report on packs for a terminal; readable at 80 columns and where it is piped."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from onevision.report import pack_content as content
from onevision.report.charts import percent
from onevision.report.dealing import Dealing
from onevision.report.pack_facts import PackFacts
from onevision.report.text import print_chart, print_overview, print_table, print_title


def print_report(facts: PackFacts, console: Console) -> None:
    """Print the report."""
    print_overview(console, content.headline(facts), content.cards(facts), content.fact_rows(facts), facts.notes)
    for shown in content.fill_charts(facts):
        print_chart(console, shown)
    print_title(console, "Compression", content.PADDING_HINT)
    print_table(
        console,
        ["", "rows", "tokens a row", "slots", "real", "slots to packs"],
        [
            [row.name, f"{row.rows:,}", f"{row.row_tokens:,}", f"{row.slots:,}"]
            + [content.fill_percent(row.share), f"{row.compression:.2f} x"]
            for row in content.paddings(facts)
        ],
    )
    for shown in (content.length_chart(facts), *content.cost_charts(facts)):
        print_chart(console, shown)
    hint = "Standard deviation, 99th percentile and maximum are multiples of the mean."
    print_title(console, "Spread of packs", hint)
    print_table(
        console,
        ["", "mean", "std", "p99", "max"],
        [
            [name, f"{row['mean']:,.0f}", *(f"{row[key]:.3f}" for key in ("std", "p99", "max"))]
            for name, row in content.cost_rows(facts)
        ],
    )
    _dealings(console, facts)
    print_title(console, "Largest packs", content.LARGEST_HINT)
    print_table(
        console,
        ["pack", "samples", "tokens", "patches", "attention cost", "cost to mean"],
        [
            [f"{row[key]:,}" for key in ("pack", "samples", "tokens", "patches", "attention_cost")]
            + [f"{row['cost_to_mean']:.3f}"]
            for row in facts.summary["largest_packs"]
        ],
    )
    for title, tokens in content.token_tables(facts):
        print_title(console, f"Tokens by {title.lower()}", "")
        cells = [[row.name, f"{row.tokens:,}", percent(row.share, 1)] for row in tokens]
        print_table(console, ["", "tokens", "share"], cells)
    _left_out(console, facts)


def _dealings(console: Console, facts: PackFacts) -> None:
    ranks, rows = content.dealing_table(facts)
    print_title(console, "Spread of cost over ranks", f"{content.waiting(facts)} {content.dealing_hint(facts)}".strip())
    if rows:
        head = ["packs a step", *(f"{count} ranks" for count in ranks)]
        print_table(console, head, [[f"{size:,}", *map(_dealing, cells)] for size, cells in rows])


def _dealing(found: Dealing | None) -> str:
    if found is None:
        return ""
    return f"{percent(found.spread, 2 if found.spread < 0.1 else 1)} ({percent(found.random_spread)})"


def _left_out(console: Console, facts: PackFacts) -> None:
    rows = content.left_out(facts)
    print_title(console, "Left out", content.left_out_hint(facts))
    if rows:
        print_table(console, ["", "samples"], [[row.reason, f"{row.samples:,}"] for row in rows])
    for path in dict.fromkeys(row.listed for row in rows):
        console.print(Text(f"listed in {path}"), soft_wrap=True)
