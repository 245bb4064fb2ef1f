"""Results of benchmarks: one JSON file a path, with hardware, versions and date beside the figures."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onevision.files import write_json
from onevision.machine import memory_gb, processor

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """A figure beside its reference: a peer or a physical limit measured in the same run, or what should come out.

    `goal` says what is asked of value or ratio, in words; `met` whether it is so.
    """

    path: str
    measure: str
    value: float
    unit: str
    reference: str
    reference_value: float
    goal: str
    met: bool

    @property
    def ratio(self) -> float | None:
        """value / reference_value; None where the reference is zero."""
        return self.value / self.reference_value if self.reference_value else None


def settings(arguments: Sequence[str], *names: str) -> dict[str, str]:
    """The arguments key=value, each one of `names`. Ends with a line and exit code 2 where one is not: hours must not
    pass before somebody sees that it was mistyped.
    """
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key not in names:
            print(f"error: {argument!r} is not one of {', '.join(f'{name}=' for name in names)}", file=sys.stderr)
            sys.exit(2)
    return dict(argument.split("=", 1) for argument in arguments)


def write_results(
    name: str, rows: list[Row], versions: dict[str, str], folder: Path = RESULTS, beside: dict[str, Any] | None = None
) -> Path:
    """Write <name>.json in `folder`, with what else is to stand `beside` the hardware; returns its path."""
    path = folder / f"{name}.json"
    content: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "memory_gb": memory_gb()}
        | (beside or {}),
        "versions": {"python": platform.python_version()} | versions,
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
    }
    write_json(path, content)
    return path


def show(title: str, rows: list[Row]) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    for column in ("what", "measure", "value", "beside it", "ratio", "goal"):
        table.add_column(column)
    for row in rows:
        ratio = f"{row.ratio:.3g}" if row.ratio else ""
        goal = row.goal if row.met else f"{row.goal} (not met)"
        beside = f"{row.reference}: {row.reference_value:.4g}"
        table.add_row(row.path, row.measure, f"{row.value:.4g} {row.unit}", beside, ratio, goal)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def package_versions(*names: str) -> dict[str, str]:
    """Versions of installed packages."""
    return {name: metadata.version(name) for name in names}
