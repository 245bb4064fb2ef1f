"""Charts and tables for a terminal; readable at 80 columns and where they are piped."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onevision.report.charts import Chart, percent
from onevision.report.page import Card

ROWS = 20  # of a histogram
BAR = 30  # characters
TEXT = 12  # characters in a line of a table's text at least, where it has so many
EIGHTHS = " ▏▎▍▌▋▊▉"


def print_overview(
    console: Console,
    headline: str,
    cards: Sequence[Card],
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    """Print what a report begins with: a sentence, the headline figures, what it is about, and the notes."""
    console.print(Text(headline, style="bold"))
    console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    for card in cards:
        table.add_row(card.name, Text(card.value, style="bold"), card.note)
    console.print(table)
    console.print()
    for name, value in facts:
        console.print(Text(f"{name:<20}{value}"), soft_wrap=True)
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


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


def print_chart(console: Console, shown: Chart) -> None:
    """Print a histogram."""
    print_title(console, shown.title, shown.hint)
    rows = bins(shown.counted, ROWS)
    highest, total = max(row[2] for row in rows), sum(row[2] for row in rows)
    table = Table.grid(padding=(0, 1))
    for justify in ("right", "center", "right", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for low, high, count in rows:
        bars = Text(bar(count / highest).ljust(BAR), style="blue")
        ends = shown.form.format(low), "–", shown.form.format(high)
        table.add_row(*ends, bars, f"{count:,}", percent(count / total, 1))
    console.print(table)


def print_title(console: Console, title: str, hint: str) -> None:
    """Print the title of a section and how to read it."""
    console.print()
    console.print(Text(title, style="bold"))
    if hint:
        console.print(Text(hint, style="dim"))


def print_table(console: Console, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """A table of numbers behind a column of names. Columns without a title have text, which may break; no number is cut
    off: a table of more of them than fit goes on behind the terminal's edge.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    least = 2 * (len(columns) - 1)
    for number, (title, *column) in enumerate(zip(columns, *cells, strict=True)):
        table.add_column(title, justify="right" if number else "left", no_wrap=bool(title), overflow="fold")
        width = max(map(cell_len, (title, *column)))
        least += width if title else min(width, TEXT)
    for row in cells:
        table.add_row(*map(Text, row))
    terminal, console.width = console.width, max(console.width, least)
    console.print(table)
    console.width = terminal
