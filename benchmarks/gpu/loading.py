"""Section 7: the loader on the GPU: pixels resized there, and decoded there too where DALI is installed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from benchmarks.data.device import WAYS, rows
from benchmarks.gpu.checks import FAILED, UNCHECKED, Check, Findings, from_rows
from benchmarks.results import Row
from onevision.machine import version


def check(findings: Findings, scratch: Path, workers: str = "0", quick: str = "0") -> None:
    """The figures of `benchmarks.data.device`; a way whose DALI is missing is not checked, one that broke failed."""

    missing: list[Check] = []

    def note(line: str) -> None:
        print(line, flush=True)
        if line.startswith("not measured: "):
            way, _, reason = line.removeprefix("not measured: ").partition(": ")
            absent = WAYS[way].get("decoder") == "dali_mixed" and version("nvidia-dali-cuda130") is None
            missing.append(Check(f"loader/{way}", outcome=UNCHECKED if absent else FAILED, note=reason))
            findings.add(missing[-1])

    def save(found: list[Row]) -> None:
        findings.checks = [*from_rows([asdict(row) | {"ratio": row.ratio} for row in found]), *missing]
        findings.save()

    save(rows(int(workers), quick == "1", note, save))
