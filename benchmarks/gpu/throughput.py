"""The throughput of a stage on this GPU beside peers: rows of `benchmarks.throughput` become findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import FACT, FAILED, MET, MISSED, UNCHECKED, Check, Findings
from benchmarks.gpu.external import run_package
from onevision.errors import InputError
from onevision.files import read_json

MFU = 0.45  # of stage 1.5 on one GPU
ABSENT = "not installed"  # what a peer says that lacks its packages


def check(findings: Findings, scratch: Path, **settings: str) -> None:
    """Run the benchmark and read each row as soon as it is there."""
    folder = scratch / "rows"
    paths = {"out": str(scratch / "throughput"), "folder": str(folder)}
    run_package(findings, "benchmarks.throughput", {**settings, **paths}, lambda: gather(findings, folder))


def gather(findings: Findings, folder: Path) -> None:
    """The rows that lie in `folder` as the section's findings, oldest first."""
    rows = []
    paths = [path for path in folder.glob("*.json") if not path.name.endswith(".asked.json")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            rows.append(read_json(path))
        except InputError:
            continue  # just removed, or no JSON
    if rows != findings.facts.get("rows"):
        findings.facts["rows"] = rows
        findings.checks = [row_check(row) for row in rows] + peer_checks(rows)
        findings.save()


def row_check(row: Mapping[str, Any]) -> Check:
    """A row's MFU, with tokens a second, the spread of its steps and its memory beside it."""
    name = str(row.get("name") or row.get("what"))
    if "failed" in row:
        return Check(name, outcome=UNCHECKED if ABSENT in row["failed"] else FAILED, note=str(row["failed"]))
    step, memory = row["step_seconds"], row.get("memory") or {}
    words = [f"{row['tokens_per_second_per_gpu']:,.0f} tokens/s", f"{step['median'] * 1e3:.0f} ms a step"]
    words.append(f"{step['p10'] * 1e3:.0f} to {step['p90'] * 1e3:.0f}")
    if row.get("hfu"):
        words.append(f"HFU {row['hfu']:.1%}")
    words += [f"{key.removesuffix('_gb')} {value:.0f} GB" for key, value in memory.items()]
    name = f"{name}, {row['model']}: MFU" if row.get("model") else f"{name}: MFU"
    if row.get("stage") != "stage1_5" or row.get("text_only"):
        return Check(name, f"{row['mfu']:.1%}", outcome=FACT, note=", ".join(words))
    met = MET if row["mfu"] >= MFU else MISSED
    return Check(name, row["mfu"], goal=f"at least {MFU:.0%}", outcome=met, note=", ".join(words))


def peer_checks(rows: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Ours on text alone, as a ratio to each peer's tokens a second on the same tokens."""
    done = [row for row in rows if "failed" not in row]
    ours = next((row for row in done if row.get("text_only") and row.get("what") == "training"), None)
    if ours is None:
        return []
    checks = []
    for row in done:
        if row.get("what") != "training":
            ratio = ours["tokens_per_second_per_gpu"] / row["tokens_per_second_per_gpu"]
            outcome = MET if ratio >= 1 else MISSED
            checks.append(Check(f"ours beside {row.get('name')}", ratio, "x", "at least 1x", outcome, "tokens/s, text"))
    return checks
