"""README.md of a bundle: a Hugging Face model card. Text from data and recipes is shown as text, never as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
NOT_RECORDED = "not recorded"
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|$~&])")


def cell(value: object) -> str:
    """A value as Markdown text in one line; nothing is said to be not recorded."""
    text = "" if value is None else str(value)
    if not text.strip():
        return NOT_RECORDED
    text = "".join(c if c.isprintable() else " " for c in text)
    return _MARKUP.sub(r"\\\1", text)


def code(value: object) -> str:
    """A value as code in one line."""
    text = "" if value is None else "".join(c if c.isprintable() else " " for c in str(value))
    if not text.strip():
        return NOT_RECORDED
    return f"`{text.replace('`', chr(39)).replace('|', '¦')}`"


def count_of(number: int, what: str) -> str:
    """A number of things: 1 rank, 2 ranks."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table of cells that are Markdown already; all columns behind the first `left` are flush right."""
    rule = [" --- " if number < left else " ---: " for number in range(len(columns))]
    lines = [columns, *rows]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], f"|{'|'.join(rule)}|", *text[1:]])


def front_matter(values: dict[str, Any]) -> str:
    """The YAML block that a model card begins with."""
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def render(context: dict[str, Any]) -> str:
    """The card that the template card.md makes of `context`."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=False,  # Markdown: values are escaped by `cell` and `code`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "code": code}
    return environment.get_template("card.md").render(**context)
