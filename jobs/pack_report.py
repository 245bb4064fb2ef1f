"""The report on packs: what they hold, how full they are, how alike they cost."""

from __future__ import annotations

from rich.console import Console

from jobs.arguments import parse
from onevision.recipe import load_recipe


def run(arguments: list[str]) -> int:
    """python -m jobs pack-report RECIPE.yaml [key=value ...]

    Prints what there is to know of the packs `data.packs` (fill, compression, histograms of lengths and costs, how
    alike data-parallel ranks cost, what was left out) and writes it to report.html in their folder. It runs here, at
    once.
    """
    from onevision.report.pack_facts import read_pack_facts
    from onevision.report.pack_page import write_page
    from onevision.report.pack_text import print_report

    path, overrides, _ = parse(arguments, "pack-report", "recipe file", ("ranks",))
    facts = read_pack_facts(load_recipe(path, overrides))
    print_report(facts, Console(highlight=False))
    print(f"\nopen {write_page(facts)}")
    return 0
