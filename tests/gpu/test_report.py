"""The report: complete for programs, short on the terminal, a calibration of `make plan`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.checks import FACT, FAILED, MET, MISSED, UNCHECKED, Check, Findings, from_rows, gpu_key
from benchmarks.gpu.external import gather
from benchmarks.gpu.report import summary, table, write_report
from benchmarks.gpu.runner import Ended
from benchmarks.gpu.stamp import Stamp
from benchmarks.results import Row
from onevision.files import read_json, write_json
from onevision.planning.hardware import GPUS, calibrated

DEVICE = "NVIDIA H100 80GB HBM3"


MARK = Stamp("2026-11-28 03:00:00 UTC", "abc", "0123456789ab")


def ended(section: str, *checks: Check, **findings: object) -> Ended:
    return Ended(section, Findings(Path("unused"), list(checks), **findings), 12.3)  # type: ignore[arg-type]


def test_the_report_is_a_calibration_and_a_page(tmp_path: Path) -> None:
    machine = ended(
        "environment", Check("copy", 3012.3456, "GB/s"), measured={"gemm": 0.78, "memory_use": 0.9},
        facts={"versions": {"torch": "2.11.0"}, "gpu": {"name": DEVICE, "memory_gb": 85.0}, "commit": "abc"},
    )
    parity = ended(
        "parity",
        Check("bf16 against fp32", 0.004, "", "at most 1%", MET, "a | b"),
        Check("fp8", outcome=UNCHECKED, note="Transformer Engine is not installed"),
    )
    (tmp_path / "parity.svg").write_text("<svg/>")
    write_report(tmp_path, DEVICE, [machine, parity], ["environment", "parity", "ops"], MARK)
    content = read_json(tmp_path / "gpu-check.json")
    assert content["not_run_yet"] == ["ops"] and content["commit"] == "abc"
    assert content["counts"] == {FAILED: 0, MISSED: 0, UNCHECKED: 1, MET: 1, FACT: 1}
    gpu = calibrated(GPUS["h100"], tmp_path / "gpu-check.json")
    assert (gpu.gemm.value, gpu.memory_use.value) == (0.78, 0.9) and not gpu.gemm.assumed
    page = (tmp_path / "gpu-check.md").read_text()
    assert "| bf16 against fp32 | 0.40% | at most 1% | met | a \\| b |" in page
    assert "| fp8 |  |  | not checked | Transformer Engine is not installed |" in page
    assert "| copy | 3,012 GB/s |  |  |  |" in page
    assert "![parity](parity.svg)" in page and "not run yet: ops" in page


def test_the_table_has_what_failed_however_much_there_is() -> None:
    many = [Check(f"row {n}", float(n), "GB/s", "at least 1x", MET, "beside a copy " * 5) for n in range(300)]
    broke = Check("rotary", outcome=FAILED, note="it broke")
    text = table([ended("ops", *many, broke), ended("data", Check("a", 1.0))])
    assert len(text) <= 9500
    assert "rotary: FAILED - it broke" in text and "more in gpu-check.md" in text
    assert text.splitlines()[-1] == "1 failed, 300 met, 1 fact"
    short = table([ended("data", Check("a", 0.5, "s", "below 1", MISSED, "why"))])
    assert short == "data (12 s)\n  a: 0.5 s (below 1) NOT MET - why\n1 not met"


def test_a_section_that_was_not_run_is_told_apart() -> None:
    one = Ended("ops", Findings(Path("unused"), [Check("all of it", outcome=UNCHECKED, note="out of time")]))
    assert table([one]).startswith("ops (not run)\n  all of it: NOT CHECKED - out of time")
    assert summary(DEVICE, [one], ["ops"], MARK)["sections"]["ops"]["seconds"] is None


def test_rows_of_a_benchmark_become_checks() -> None:
    rows = [
        Row("op 1", "bandwidth", 2000.0, "GB/s", "copy", 3000.0, ">= 0.6x", True),
        Row("op 1", "bandwidth, one image", 200.0, "GB/s", "copy", 3000.0, "none, for comparison", True),
        Row("op 2", "bandwidth", 200.0, "GB/s", "copy", 3000.0, ">= 0.7x", False),
    ]
    found = from_rows([vars(row) | {"ratio": row.ratio} for row in rows])
    assert [check.outcome for check in found] == [MET, FACT, MISSED]
    assert found[0].name == "op 1: bandwidth" and found[0].note == "copy: 3000 (0.667 of it)"


def test_what_a_benchmark_could_not_measure_is_absent_or_broken(tmp_path: Path) -> None:
    row = vars(Row("a", "speed", 2.0, "x", "b", 1.0, ">= 1x", True)) | {"ratio": 2.0}
    content = {
        "rows": [row],
        "not_checked": {"liger": "liger_kernel not installed", "sdpa": "ValueError: no (peers.py:3)"},
        "measured": {"gemm": 0.7},
        "hardware": {"failures": {"rotary": "Traceback\nRuntimeError: wrong"}},
    }
    write_json(tmp_path / "some.json", content)
    (tmp_path / "half.json").write_text("{")
    write_json(tmp_path / "other.json", {"traceEvents": []})
    findings = Findings(tmp_path / "findings" / "findings.json")
    gather(findings, tmp_path)
    outcomes = {check.name: (check.outcome, check.note) for check in findings.checks}
    assert outcomes == {
        "a: speed": (MET, "b: 1 (2 of it)"),
        "liger": (UNCHECKED, "liger_kernel not installed"),
        "sdpa": (FAILED, "ValueError: no (peers.py:3)"),
        "rotary": (FAILED, "RuntimeError: wrong"),
        "for make plan: gemm": (FACT, ""),
    }
    assert findings.measured == {"gemm": 0.7} and findings.facts["some"]["rows"] == [row]


@pytest.mark.parametrize(
    ("device", "key"),
    [(DEVICE, "h100"), ("NVIDIA A800-SXM4-80GB", "a800"), ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090")],
)
def test_short_names_of_gpus(device: str, key: str) -> None:
    assert gpu_key(device) == key
