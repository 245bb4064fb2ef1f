"""What a section finds: checks with a value and a goal, facts, curves; on disk as soon as they are known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onevision.errors import OneVisionError
from onevision.files import read_json, write_json

MET, MISSED, FACT, UNCHECKED, FAILED = "met", "not met", "fact", "not checked", "failed"
EARLIER = "earlier.json"  # beside a section's findings: those of an earlier piece
ENDINGS = ("the rest", "all of it", "it did not end")  # checks that say how far a section came, not what it found
SAID = "· "  # a line of a section that is for the terminal, not only for the log


class NotChecked(OneVisionError):
    """Something that a section needs is not here. The message is the reason."""


@dataclass(frozen=True)
class Check:
    """One finding. `value` is in `unit`, `goal` is what is asked of it, in words; a fact has none.

    `outcome` is one of met, not met, fact, not checked, failed; `note` says why, or what it was compared with.
    """

    name: str
    value: float | str | None = None
    unit: str = ""
    goal: str = ""
    outcome: str = FACT
    note: str = ""


@dataclass
class Findings:
    """The findings of one section so far, kept in the file `path`.

    `earlier` has what the same section of the same code had found in a piece of the check that ended before it did.
    """

    path: Path
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # hardware, versions, figures that no check is about
    measured: dict[str, float] = field(default_factory=dict)  # figures of onevision.planning.hardware
    curves: dict[str, list[float]] = field(default_factory=dict)
    earlier: Findings | None = field(default=None, repr=False)

    def add(self, check: Check) -> None:
        """Note a check."""
        self.checks.append(check)
        self.save()

    def goal(self, name: str, value: float, unit: str, goal: str, met: bool, note: str = "") -> None:
        """Note a value that something is asked of."""
        self.add(Check(name, value, unit, goal, MET if met else MISSED, note))

    def fact(self, name: str, value: float | str, unit: str = "", note: str = "") -> None:
        """Note a value that nothing is asked of."""
        self.add(Check(name, value, unit, note=note))

    def unchecked(self, name: str, reason: str) -> None:
        """Note what could not be checked."""
        self.add(Check(name, outcome=UNCHECKED, note=reason))

    def failed(self, name: str, reason: str) -> None:
        """Note what broke."""
        self.add(Check(name, outcome=FAILED, note=reason))

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, self.content())

    def content(self) -> dict[str, Any]:
        """All of it as plain values, without path and what was earlier."""
        content = asdict(self)
        return {key: content[key] for key in ("checks", "facts", "measured", "curves")}


def read_findings(path: Path) -> Findings:
    """The findings that a section left, none if it left no file.

    Raises:
        InputError: the file is not JSON.
    """
    if not path.exists():
        return Findings(path)
    return findings_of(read_json(path), path)


def findings_of(content: Mapping[str, Any], path: Path) -> Findings:
    """The findings that `Findings.content` was made of."""
    return Findings(path, **{**content, "checks": [Check(**check) for check in content["checks"]]})


def from_rows(rows: Sequence[Mapping[str, Any]]) -> list[Check]:
    """The checks that rows of `benchmarks.results.Row` are; a row without a goal is a fact."""
    checks = []
    for row in rows:
        ratio, beside = row.get("ratio"), row.get("reference")
        note = f"{beside}: {row['reference_value']:.4g}" if beside and row.get("reference_value") is not None else ""
        note += f" ({ratio:.3g} of it)" if note and ratio else ""
        goal = str(row.get("goal") or "")
        goal = "" if goal.startswith("none") else goal  # "none, for comparison"
        outcome = FACT if not goal or row.get("met") is None else MET if row["met"] else MISSED
        name = ": ".join(str(row[key]) for key in ("path", "measure") if row.get(key))
        checks.append(Check(name, row.get("value"), str(row.get("unit", "")), goal, outcome, note))
    return checks


def gpu_key(device: str) -> str:
    """Short name of a GPU, as in onevision.planning.hardware: h100 of "NVIDIA H100 80GB HBM3"."""
    known = re.search(r"\b[A-Z]{1,2}\d{2,4}\b", device)
    return (known[0] if known else device.removeprefix("NVIDIA ").replace(" ", "-")).lower()


def say(text: str) -> None:
    """A line for whoever watches."""
    print(f"{SAID}{text}", flush=True)
