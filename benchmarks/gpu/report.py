"""The report: gpu-check.json for programs, gpu-check.md for readers, a table for the terminal."""

from __future__ import annotations

import datetime
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import ENDINGS, FACT, FAILED, MET, MISSED, UNCHECKED, Check, findings_of, gpu_key
from benchmarks.gpu.runner import Ended
from benchmarks.gpu.stamp import Stamp
from onevision.errors import InputError
from onevision.files import read_json, write_json, write_text

NAME = "gpu-check"
LONGEST = 9_500  # characters of the table on the terminal
WORST_FIRST = (FAILED, MISSED, UNCHECKED, MET, FACT)


OTHER_CODE = "at this code"  # the check that says of a section that it ran from another


def write_report(out: Path, device: str, ended: Sequence[Ended], planned: Sequence[str], mark: Stamp) -> None:
    """Write both files; `planned` names all sections that the report is to have, also those that are still to come."""
    content = summary(device, ended, planned, mark)
    write_json(out / f"{NAME}.json", content)
    write_text(out / f"{NAME}.md", markdown(content, out))


def read_report(out: Path, device: str, mark: Stamp) -> dict[str, Ended]:
    """The sections of the report in `out` by name, none where there is no report; those of other code than `mark`'s
    have a check that says so.

    Raises:
        InputError: it is the report of another GPU, or is not one.
    """
    path = out / f"{NAME}.json"
    if not path.exists():
        return {}
    content = read_json(path)
    try:
        if content["device"]["name"] != device:
            raise InputError(f"{path} is the report of {content['device']['name']}, not of {device}: name another out=")
        return {name: _read(name, section, mark) for name, section in content["sections"].items()}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no report of gpu-check as it is now ({error!r}): name another out=") from None


def _read(name: str, section: dict[str, Any], mark: Stamp) -> Ended:
    content = {key: section[key] for key in ("checks", "facts", "measured", "curves")}
    findings = findings_of(content, Path("unsaved"))
    findings.checks = [check for check in findings.checks if check.name != OTHER_CODE]
    own = Stamp(**section["stamp"])
    if own.code != mark.code:
        note = f"found from code {own.code}, and this is {mark.code}"
        findings.checks.append(Check(OTHER_CODE, outcome=UNCHECKED, note=note))
    return Ended(name, findings, section["seconds"], section["tail"], section["whole"], section["settings"], own)


def kept(ended: dict[str, Ended], settings: dict[str, dict[str, str]], mark: Stamp) -> dict[str, Ended]:
    """Those of the sections that ran from this code with these settings, without the checks on how far they came."""
    same = {
        name: one for name, one in ended.items() if one.stamp.code == mark.code and one.settings == settings.get(name)
    }
    for one in same.values():
        if not one.whole:
            one.findings.checks = [check for check in one.findings.checks if check.name not in ENDINGS]
    return same


def summary(device: str, ended: Sequence[Ended], planned: Sequence[str], mark: Stamp) -> dict[str, Any]:
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
        "commit": mark.commit,
        "code": mark.code,
        "device": facts.get("gpu", {"name": device}),
        "hardware": facts.get("hardware", {}),
        "versions": facts.get("versions", {}),
        "counts": {outcome: counts[outcome] for outcome in WORST_FIRST},
        "not_run_yet": [name for name in planned if name not in {one.section for one in ended}],
        "measured": measured,
        "sections": {
            one.section: {
                "seconds": one.seconds,
                **one.findings.content(),
                "tail": one.tail,
                "whole": one.whole,
                "settings": one.settings,
                "stamp": asdict(one.stamp),
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
        f"`make gpu-check` at commit {content['commit'] or 'unknown'}, code {content['code']}. Sections can have run "
        "at different times: each says when, and from which code.",
        "",
        f"- GPU: {_listed(device)}",
        f"- machine: {_listed(hardware)}",
        f"- versions: {_listed(content['versions'])}",
        f"- outcomes: {_listed(content['counts'])}",
    ]
    if content["not_run_yet"]:
        lines.append(f"- not run yet: {', '.join(content['not_run_yet'])}")
    for name, section in content["sections"].items():
        took = "not run" if section["seconds"] is None else f"{section['seconds']:.0f} s"
        took += "" if section["whole"] else ", not to its end"
        lines += ["", f"## {name} ({took})", "", f"{Stamp(**section['stamp'])}{_settings(section['settings'])}", ""]
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
        took += "" if one.whole else ", not to its end"
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


def _settings(settings: dict[str, str]) -> str:
    return f"; {', '.join(f'{key}={value}' for key, value in settings.items())}" if settings else ""


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if not isinstance(value, dict)) or "unknown"
