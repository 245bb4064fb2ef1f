"""report.html of packs: one self-contained page."""

from __future__ import annotations

from pathlib import Path

from onevision.files import write_text
from onevision.report import pack_content as content
from onevision.report.charts import drawn
from onevision.report.pack_facts import PackFacts
from onevision.report.page import page


def write_page(facts: PackFacts) -> Path:
    """Write the page into the packs' folder and return its path.

    Raises:
        StorageError: the disk is full.
    """
    path = facts.folder / "report.html"
    write_text(path, render(facts))
    return path


def render(facts: PackFacts) -> str:
    """The page as HTML."""
    ranks, dealings = content.dealing_table(facts)
    [(length_chart, length_bars)] = drawn([content.length_chart(facts)])
    context = {
        "facts": facts,
        "summary": facts.summary,
        "fact_rows": content.fact_rows(facts),
        "headline": content.headline(facts),
        "above_bound": content.above_bound(facts),
        "fill_percent": content.fill_percent,
        "cards": content.cards(facts),
        "fill_charts": drawn(content.fill_charts(facts)),
        "length_chart": length_chart,
        "length_bars": length_bars,
        "cost_charts": drawn(content.cost_charts(facts)),
        "padding_hint": content.PADDING_HINT,
        "paddings": content.paddings(facts),
        "cost_rows": content.cost_rows(facts),
        "dealing_hint": content.dealing_hint(facts),
        "waiting": content.waiting(facts),
        "ranks": ranks,
        "dealings": dealings,
        "largest_hint": content.LARGEST_HINT,
        "token_tables": content.token_tables(facts),
        "left_out_hint": content.left_out_hint(facts),
        "left_out": content.left_out(facts),
    }
    return page("packs.html", context)
