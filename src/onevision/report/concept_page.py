"""report.html of concepts: one self-contained page."""

from __future__ import annotations

from pathlib import Path

from onevision.files import write_text
from onevision.report import concept_charts as charts
from onevision.report import concept_content as content
from onevision.report import concept_making as making
from onevision.report.charts import Comparison, GroupedBars, drawn, grouped
from onevision.report.concept_facts import ConceptFacts
from onevision.report.page import page


def write_page(facts: ConceptFacts) -> Path:
    """Write the page into the folder of the selection, or of the concepts where there is none, and return its path.

    Raises:
        StorageError: the disk is full.
    """
    path = facts.folder / "report.html"
    write_text(path, render(facts))
    return path


def render(facts: ConceptFacts) -> str:
    """The page as HTML."""
    none, names = content.absent(facts)
    columns, rows = content.coverage_rows(facts)
    context = {
        "facts": facts,
        "content": content,
        "columns": columns,
        "coverage_rows": rows,
        "sets": [(name, content.COLUMNS[name]) for name in facts.counts],
        "ranks": charts.rank_curves(facts),
        "count_chart": _drawn(charts.count_chart(facts)),
        "changes": list(zip(content.CHANGE_TITLES, content.changes(facts), strict=True)),
        "absent_hint": content.absent_hint(none, names),
        "absent_names": names,
        "groups": content.groups(facts),
        "quotas": content.quotas(facts),
        "weight_chart": _drawn(charts.weight_chart(facts)),
        "score_charts": drawn(charts.score_charts(facts)),
        "score_rows": content.score_rows(facts),
        "settings": making.settings(facts),
        "lineage": making.lineage(facts),
    }
    return page("concepts.html", context)


def _drawn(shown: Comparison | None) -> tuple[Comparison, GroupedBars] | None:
    return (shown, grouped(shown)) if shown else None
