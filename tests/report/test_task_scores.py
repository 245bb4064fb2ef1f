"""Results of lmms-eval in the report: a dot a result, the last one in the table, and no page without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onevision.evaluation.harness.places import result_file, results_folder
from onevision.files import write_json
from onevision.report.report import write_report
from onevision.report.results import PipelineFolders
from tests.report.page import Page


def write_result(run: Path, step: int, task: str, percent: float | None, **more: Any) -> None:
    values = {
        "task": task,
        "step": step,
        "metrics": {},
        "answered": 20,
        "failed": 0,
        "settings": {},
        "score": None if percent is None else {"metric": "accuracy", "percent": percent},
        **more,
    }
    folder = results_folder(run, "onevision", step)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(result_file(folder, task), values)


def test_no_section_without_results(finished: PipelineFolders, tmp_path: Path) -> None:
    assert "tasks" not in Page(write_report(finished, tmp_path / "page.html")).ids


def test_results_are_curves_and_a_table(copied: PipelineFolders) -> None:
    for step, percent in ((20, 31.5), (40, 44.25)):
        write_result(copied.stages["stage1_5"], step, "onevision_heldout", percent)
    published = {"4b": {"percent": 64.9, "difference": -10.9}, "8b": {"percent": 67.7}}
    write_result(copied.stages["stage2"], 30, "mmstar", 54.0, published=published, answered=18, failed=2)
    write_result(copied.stages["stage2"], 30, "docvqa_test", None, problem="a file for the server")
    (results_folder(copied.stages["stage2"], "onevision", 30) / "broken.json").write_text("{")
    path = write_report(copied)
    found = Page(path)
    assert "tasks" in found.ids
    assert found.classes["dot"] == 3
    for text in ("onevision_heldout", "Stage 1.5, step 40", "44.2", "mmstar", "64.9 (-10.9)", "a file for the server"):
        assert text in found.text, text
    assert "31.5" in path.read_text(encoding="utf-8")  # the title of its dot
    assert "broken.json is not valid JSON" in found.text
