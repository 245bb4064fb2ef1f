"""The report on packs for a terminal; readable at 80 columns and where it is piped."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onevision.report import pack_content as content
from onevision.report.charts import percent
from onevision.report.dealing import Dealing
from onevision.report.pack_content import Chart
from onevision.report.pack_facts import PackFacts

ROWS = 20  # of a histogram
BAR = 30  # characters
EIGHTHS = " ▏▎▍▌▋▊▉"


def print_report(facts: PackFacts, console: Console) -> None:
    """Print the report."""
    console.print(Text(content.headline(facts), style="bold"))
    console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    for card in content.cards(facts):
        table.add_row(card.name, Text(card.value, style="bold"), card.note)
    console.print(table)
    console.print()
    for name, value in content.fact_rows(facts):
        console.print(Text(f"{name:<20}{value}"), soft_wrap=True)
    for note in facts.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)

    for chart in content.fill_charts(facts):
        _chart(console, chart)
    _title(console, "Compression", content.PADDING_HINT)
    _table(
        console,
        ["", "rows", "tokens a row", "slots", "real", "slots to packs"],
        [
            [row.name, f"{row.rows:,}", f"{row.row_tokens:,}", f"{row.slots:,}"]
            + [content.fill_percent(row.share), f"{row.compression:.2f} x"]
            for row in content.paddings(facts)
        ],
    )
    for chart in (content.length_chart(facts), *content.cost_charts(facts)):
        _chart(console, chart)
    _title(console, "Spread of packs", "Standard deviation, 99th percentile and maximum are multiples of the mean.")
    _table(
        console,
        ["", "mean", "std", "p99", "max"],
        [
            [name, f"{row['mean']:,.0f}", *(f"{row[key]:.3f}" for key in ("std", "p99", "max"))]
            for name, row in content.cost_rows(facts)
        ],
    )
    _dealings(console, facts)
    _title(console, "Largest packs", content.LARGEST_HINT)
    _table(
        console,
        ["pack", "samples", "tokens", "patches", "attention cost", "cost to mean"],
        [
            [f"{row[key]:,}" for key in ("pack", "samples", "tokens", "patches", "attention_cost")]
            + [f"{row['cost_to_mean']:.3f}"]
            for row in facts.summary["largest_packs"]
        ],
    )
    for title, tokens in content.token_tables(facts):
        _title(console, f"Tokens by {title.lower()}", "")
        cells = [[row.name, f"{row.tokens:,}", percent(row.share, 1)] for row in tokens]
        _table(console, ["", "tokens", "share"], cells)
    _left_out(console, facts)


def bins(counted: dict[str, list[float]], rows: int) -> list[tuple[float, float, int]]:
    """Low edge, high edge, count of a histogram `{edges, counts}`, without the empty ends, in at most `rows` rows:
    neighbouring bins are joined, as many at a time; then empty ones are.
    """
    edges, counts = counted["edges"], counted["counts"]
    filled = [place for place, count in enumerate(counts) if count]
    first, last = filled[0], filled[-1] + 1
    step = -(-(last - first) // rows)
    found: list[tuple[float, float, int]] = []
    for start in range(first, last, step):
        end = min(start + step, last)
        low, count = edges[start], int(sum(counts[start:end]))
        if found and not count and not found[-1][2]:
            low = found.pop()[0]
        found.append((low, edges[end], count))
    return found


def bar(share: float, width: int = BAR) -> str:
    """A bar of a share (0 to 1) of `width` characters, to an eighth of one; whatever is not nothing can be seen."""
    eighths = max(round(share * width * 8), 1 if share else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _chart(console: Console, chart: Chart) -> None:
    _title(console, chart.title, chart.hint)
    rows = bins(chart.counted, ROWS)
    highest, total = max(row[2] for row in rows), sum(row[2] for row in rows)
    table = Table.grid(padding=(0, 1))
    for justify in ("right", "center", "right", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for low, high, count in rows:
        shown = Text(bar(count / highest).ljust(BAR), style="blue")
        ends = chart.form.format(low), "–", chart.form.format(high)
        table.add_row(*ends, shown, f"{count:,}", percent(count / total, 1))
    console.print(table)


def _dealings(console: Console, facts: PackFacts) -> None:
    ranks, rows = content.dealing_table(facts)
    _title(console, "Spread of cost over ranks", f"{content.waiting(facts)} {content.dealing_hint(facts)}".strip())
    if rows:
        head = ["packs a step", *(f"{count} ranks" for count in ranks)]
        _table(console, head, [[f"{size:,}", *map(_dealing, cells)] for size, cells in rows])


def _dealing(found: Dealing | None) -> str:
    if found is None:
        return ""
    return f"{percent(found.spread, 2 if found.spread < 0.1 else 1)} ({percent(found.random_spread)})"


def _left_out(console: Console, facts: PackFacts) -> None:
    rows = content.left_out(facts)
    _title(console, "Left out", content.left_out_hint(facts))
    if rows:
        _table(console, ["", "samples"], [[row.reason, f"{row.samples:,}"] for row in rows])
    for path in dict.fromkeys(row.listed for row in rows):
        console.print(Text(f"listed in {path}"), soft_wrap=True)


def _title(console: Console, title: str, hint: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    if hint:
        console.print(Text(hint, style="dim"))


def _table(console: Console, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """A table of numbers behind a column of names, which may break."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number or name), overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)
