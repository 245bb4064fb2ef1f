"""summary.json: the result of a pipeline in numbers, for programs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from onevision.files import write_json
from onevision.report.results import PipelineFolders, Results, Stage, read_results

HARDWARE = (
    "device",
    "world_size",
    "processor",
    "cores",
    "threads",
    "memory_gb",
    "system",
    "peak_tflops",
    "peak_source",
)
PACKS = ("fill", "packs", "samples", "tokens", "lower_bound_packs", "mean_samples_per_pack")


def build_summary(pipeline: PipelineFolders) -> dict[str, Any]:
    """The numbers of a pipeline; what is missing is null, an empty mapping, or a line in `notes`.

    `categories` and `overall` are shares of right answers (0 to 1); `stages` as `stage_summary`; `seconds` is the sum
    over all steps. `samples.in` counts the records that the corpus step was given.

    Raises:
        InputError: there is nothing to summarise.
    """
    return summarise(read_results(pipeline))


def write_summary(pipeline: PipelineFolders) -> dict[str, Any]:
    """Write `build_summary(pipeline)` to `summary.json` in the pipeline's root, and return it.

    Raises:
        InputError: there is nothing to summarise.
        StorageError: the disk is full.
    """
    summary = build_summary(pipeline)
    write_json(pipeline.root / "summary.json", summary)
    return summary


def summarise(results: Results) -> dict[str, Any]:
    """As `build_summary`, of results that were read already."""
    categories = _categories(results)
    environment = results.stages[-1].environment if results.stages else {}
    start = results.start["summary"] if results.start else {}
    return {
        "categories": categories,
        "overall": overall(categories),
        "packs": _packs(results),
        "samples": _samples(results),
        "stages": {stage.name: stage_summary(stage) for stage in results.stages},
        "model": {
            "preset": results.stages[-1].recipe.model.preset if results.stages else None,
            "parameters": start.get("parameters"),
        },
        "versions": {"python": environment["python"], **environment["packages"]} if environment else {},
        "hardware": {key: environment[key] for key in HARDWARE if key in environment},
        "seconds": total_seconds(results),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": environment.get("commit"),
        "notes": results.notes,
    }


def stage_summary(stage: Stage) -> dict[str, Any]:
    """Numbers of one stage over all its steps.

    `tokens_per_second` and `samples_per_second` count real tokens and samples over the time spent in steps; `mfu` and
    `hfu` (0 to 1) are weighted by that time. `seconds` is wall time of the loop, checkpoints included. `skipped`
    counts samples whose images could not be decoded. `resumed` is the step after which the run was last continued, 0
    if it never was.
    """
    rows = stage.rows
    step_seconds = total(rows, "step_seconds")
    seconds, resumed = _seconds(stage)
    return {
        "steps": rows[-1]["step"],
        "loss_first": rows[0]["loss"],
        "loss_last": rows[-1]["loss"],
        "seconds": seconds,
        "tokens_per_second": total(rows, "tokens") / step_seconds,
        "samples_per_second": total(rows, "samples") / step_seconds,
        "mfu": sum(row["mfu"] * row["step_seconds"] for row in rows) / step_seconds,
        "hfu": sum(row["hfu"] * row["step_seconds"] for row in rows) / step_seconds,
        "skipped": int(total(rows, "skipped")),
        "resumed": resumed,
    }


def overall(categories: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Share of right answers over all questions; None where a category has no figure."""
    n = sum(entry["n"] for entry in categories.values())

    def mean(key: str) -> float | None:
        values = [entry[key] for entry in categories.values()]
        if not n or None in values:
            return None
        return sum(entry[key] * entry["n"] for entry in categories.values()) / n

    return {"before": mean("before"), "after": mean("after"), "chance": mean("chance"), "n": n}


def total(rows: Iterable[dict[str, Any]], key: str) -> float:
    """Sum of a value over rows of metrics."""
    return sum(row[key] for row in rows)


def total_seconds(results: Results) -> float:
    """Seconds spent in all steps that were found."""
    records = [results.corpus, results.heldout, results.packs, results.selection]
    if results.selection_packs != results.packs:  # a run that reads a selection has one folder of packs
        records.append(results.selection_packs)
    records += [evaluation.record for evaluation in (results.before, results.after) if evaluation]
    data = sum(record["seconds"] for record in records if record)
    return data + sum(_seconds(stage)[0] for stage in results.stages)


def _seconds(stage: Stage) -> tuple[float, int]:
    """Wall seconds of a stage, and the step after which it was last continued.

    step.json knows the time since the last start; for the steps before it, the rows do, of which there is one every
    `log_interval` steps.
    """
    steps_a_row = stage.rows[-1]["step"] / len(stage.rows)
    if stage.summary is None:
        return total(stage.rows, "step_seconds") * steps_a_row, 0
    resumed = int(stage.summary.get("resumed_after", 0))
    earlier = total((row for row in stage.rows if row["step"] <= resumed), "step_seconds")
    return stage.summary["seconds"] + earlier * steps_a_row, resumed


def _categories(results: Results) -> dict[str, dict[str, Any]]:
    before = results.before.categories if results.before else {}
    after = results.after.categories if results.after else {}
    names = list(after) + [name for name in before if name not in after]
    return {
        name: {
            "before": before[name]["accuracy"] if name in before else None,
            "after": after[name]["accuracy"] if name in after else None,
            "chance": results.chance.get(name),
            "n": (after.get(name) or before[name])["n"],
        }
        for name in names
    }


def _packs(results: Results) -> dict[str, Any] | None:
    if results.packs is None:
        return None
    summary = results.packs["summary"]
    return {key: summary[key] for key in PACKS} | {
        "sequence_length": results.packs["inputs"]["sequence_length"]
    }


def _samples(results: Results) -> dict[str, Any] | None:
    if results.corpus is None:
        return None
    corpus = results.corpus["summary"]
    packs = results.packs["summary"] if results.packs else {}
    return {
        "in": corpus["samples"] + corpus["rejected"],
        "packed": packs.get("samples"),
        "rejected": corpus["rejected"],
        "overlong": packs.get("overlong"),
        "rejects_by_reason": corpus["rejects_by_reason"],
    }
