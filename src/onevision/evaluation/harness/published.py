"""The fourteen tasks of the published command, and the figures beside which a result is shown.

Source: An et al., "LLaVA-OneVision-1.5", arXiv 2509.23661 v3, the table of the instruct models; in percent. They were
measured with prompts, pixel limits (max_pixels=3240000), judges and a version of lmms-eval of their own: a difference
of a point is no finding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onevision.recipe_evaluation import HELDOUT_TASK


@dataclass(frozen=True)
class Published:
    """A task's figures, and where lmms-eval has the figure that they are compared with: `metric` of the task `part`
    (itself if empty), which is a share of 1 unless `percent`."""

    b4: float | None
    b8: float | None
    metric: str = ""
    part: str = ""
    percent: bool = False
    note: str = ""  # why there is no figure to compare with


# Tasks whose scorer asks a judge and, without its key, would find every answer wrong; others of that kind do not load.
JUDGED = ("charxiv", "charxiv_val_descriptive", "charxiv_val_reasoning")
JUDGE_KEY = "OPENAI_API_KEY"
SERVER = "answers are written for the benchmark's own server, which scores them"
TASKS = {
    "mmmu_val": Published(52.7, 55.4, "mmmu_acc"),
    "mmmu_pro_standard": Published(35.3, 37.4, "mmmu_acc"),
    "mmbench_en_test": Published(84.2, 84.1, note=SERVER),
    "mmerealworld": Published(61.6, 61.7, "mme_realworld_score"),
    "mmerealworld_cn": Published(49.6, 56.1, "mme_realworld_score"),
    "ai2d": Published(83.6, 84.2, "exact_match"),
    "ai2d_no_mask": Published(93.3, 94.1, "exact_match"),
    "vstar_bench": Published(74.9, 78.0, "vstar_overall_acc", percent=True),
    "chartqa": Published(87.1, 86.5, "relaxed_overall"),
    "charxiv": Published(63.8, 70.9, "descriptive_acc", "charxiv_val_descriptive"),
    "docvqa_test": Published(94.4, 95.0, note=SERVER),
    "mathvista_testmini": Published(67.9, 69.6, "llm_as_judge_eval", "mathvista_testmini_format", percent=True),
    "mmstar": Published(64.9, 67.7, "average"),
    "scienceqa": Published(None, None, "exact_match"),
    HELDOUT_TASK: Published(None, None, "accuracy"),
}


def score(task: str, metrics: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The figure that stands for a task, as {metric, percent}, from `metrics` of each of its parts by name; None where
    there is none. Of a task that is not in `TASKS` it is the first number that is a share (0 to 1)."""
    known = TASKS.get(task)
    if known is not None:
        found = metrics.get(known.part or task, {}).get(known.metric)
        return _score(known.metric, found, known.percent) if isinstance(found, int | float) else None
    for part in metrics.values():
        for metric, found in part.items():
            if isinstance(found, int | float) and 0 <= found <= 1:
                return _score(metric, found, False)
    return None


def _score(metric: str, found: float, percent: bool) -> dict[str, Any]:
    return {"metric": metric, "percent": round(float(found) * (1 if percent else 100), 4)}


def beside(task: str, percent: float | None) -> dict[str, Any]:
    """What is published of a task, and how far a score is from it: {"4b": {percent, difference}, "8b": …}."""
    known = TASKS.get(task)
    found: dict[str, Any] = {}
    for size, figure in (("4b", known.b4), ("8b", known.b8)) if known else ():
        if figure is not None:
            found[size] = {"percent": figure}
            if percent is not None:
                found[size]["difference"] = round(percent - figure, 2)
    return found
