"""What all pages share: the template environment, the style, headline figures, lineage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from onevision import __version__
from onevision.report.charts import percent

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Lineage:
    """A step: its folder, the digest of what it left, what it was made from, and how long it took."""

    step: str
    folder: str
    fingerprint: str
    made_from: str
    seconds: str


def page(template: str, context: dict[str, Any]) -> str:
    """The self-contained page that a template of this folder makes of `context`, as HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = percent
    environment.filters["width"] = lambda value: f"{100 * value:.2f}"
    css = (HERE / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(css=css, version=__version__, **context)
