"""The report: gpu-check.json for programs, gpu-check.md for readers, a table for the terminal."""

from __future__ import annotations

import datetime
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import FACT, FAILED, MET, MISSED, UNCHECKED, Check, gpu_key
from benchmarks.gpu.runner import Ended
from onevision.files import write_json, write_text

NAME = "gpu-check"
LONGEST = 9_500  # characters of the table on the terminal
WORST_FIRST = (FAILED, MISSED, UNCHECKED, MET, FACT)


def write_report(out: Path, device: str, ended: Sequence[Ended], planned: Sequence[str]) -> None:
    """Write both files; `planned` names the sections of this run, also those that are still to come."""
    content = summary(device, ended, planned)
    write_json(out / f"{NAME}.json", content)
    write_text(out / f"{NAME}.md", markdown(content, out))


def summary(device: str, ended: Sequence[Ended], planned: Sequence[str]) -> dict[str, Any]:
    """All that was found, as plain values. `gpu`, `date` and `measured` make it a calibration file of `make plan`."""
    measured: dict[str, float] = {}
    facts: dict[str, Any] = {}
    for one in ended:
        measured |= one.findings.measured
        if one.section == "environment":
            facts = one.findings.facts
    counts = Counter(check.outcome for one in ended for check in one.findings.checks)
    return {
        "gpu": gpu_key(device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": facts.get("commit"),
        "device": facts.get("gpu", {"name": device}),
        "hardware": facts.get("hardware", {}),
        "versions": facts.get("versions", {}),
        "counts": {outcome: counts[outcome] for outcome in WORST_FIRST},
        "not_run_yet": [name for name in planned if name not in {one.section for one in ended}],
        "measured": measured,
        "sections": {
            one.section: {
                "seconds": one.seconds,
                "checks": [asdict(check) for check in one.findings.checks],
                "facts": one.findings.facts,
                "curves": one.findings.curves,
                "tail": one.tail,
            }
            for one in ended
        },
    }


def markdown(content: dict[str, Any], out: Path) -> str:
    """The report as a page."""
    device, hardware = content["device"], content["hardware"]
    lines = [
        f"# {device['name']}, {content['date']}",
        "",
        f"`make gpu-check` at commit {content['commit'] or 'unknown'}.",
        "",
        f"- GPU: {_listed(device)}",
        f"- machine: {_listed(hardware)}",
        f"- versions: {_listed(content['versions'])}",
        f"- outcomes: {_listed(content['counts'])}",
    ]
    if content["not_run_yet"]:
        lines.append(f"- interrupted before: {', '.join(content['not_run_yet'])}")
    for name, section in content["sections"].items():
        took = "not run" if section["seconds"] is None else f"{section['seconds']:.0f} s"
        lines += ["", f"## {name} ({took})", ""]
        lines += ["| check | value | goal | outcome | note |", "|---|---|---|---|---|"]
        for row in section["checks"]:
            check = Check(**row)
            outcome = "" if check.outcome == FACT else check.outcome
            cells = (check.name, value_of(check), check.goal, outcome, check.note)
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        for picture in sorted((*out.glob(f"{name}*.svg"), *out.glob(f"{name}*.png"))):
            lines += ["", f"![{picture.stem}]({picture.name})"]
        if section["tail"]:
            lines += ["", "The last it printed:", "", *(f"    {line}" for line in section["tail"])]
    return "\n".join(lines) + "\n"


def table(ended: Sequence[Ended], longest: int = LONGEST) -> str:
    """One line a check; where they are too many, facts and what was met are left out of the largest sections."""
    kept = {one.section: list(one.findings.checks) for one in ended}
    left: Counter[str] = Counter()
    text = _table(ended, kept, left)
    for outcome in (FACT, MET, UNCHECKED, MISSED, FAILED):
        while len(text) > longest:
            fitting = [name for name, checks in kept.items() if any(check.outcome == outcome for check in checks)]
            if not fitting:
                break
            name = max(fitting, key=lambda one: len(kept[one]))
            last = max(number for number, check in enumerate(kept[name]) if check.outcome == outcome)
            del kept[name][last]
            left[name] += 1
            text = _table(ended, kept, left)
    return text


def _table(ended: Sequence[Ended], kept: dict[str, list[Check]], left: Counter[str]) -> str:
    counts = Counter(check.outcome for one in ended for check in one.findings.checks)
    lines = []
    for one in ended:
        took = "not run" if one.seconds is None else f"{one.seconds:.0f} s"
        more = f", {left[one.section]} more in {NAME}.md" if left[one.section] else ""
        lines.append(f"{one.section} ({took}{more})")
        lines += [_line(check) for check in kept[one.section]]
    lines.append(", ".join(f"{counts[outcome]} {outcome}" for outcome in WORST_FIRST if counts[outcome]))
    return "\n".join(lines)


def _line(check: Check) -> str:
    outcome = {FACT: "", MET: MET}.get(check.outcome, check.outcome.upper())
    goal = f"({check.goal})" if check.goal else ""
    text = " ".join(part for part in (f"{check.name}:", value_of(check), goal, outcome) if part)
    note = f" - {check.note}" if check.note else ""
    return "  " + textwrap.shorten(text + note, 190, placeholder=" ...")


def value_of(check: Check) -> str:
    """The value with its unit; shares of a goal in percent as percent."""
    value = check.value
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not check.unit and "%" in check.goal:
        return f"{value:.2%}"
    shown = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return f"{shown} {check.unit}".strip()


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if not isinstance(value, dict)) or "unknown"
