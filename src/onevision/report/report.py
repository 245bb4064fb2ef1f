"""report.html: one self-contained page about a pipeline, from its folders alone."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from onevision.files import write_text
from onevision.progress import duration
from onevision.report.charts import histogram, in_percent, percent
from onevision.report.curves import category_losses, model_line, panels, stage_table, stage_title, strips
from onevision.report.examples import example_groups
from onevision.report.page import Card, page
from onevision.report.results import PipelineFolders, Results, make_command, read_results
from onevision.report.summary import summarise
from onevision.report.tables import (
    Accuracy,
    accuracies,
    category_table,
    image_counts,
    language_counts,
    languages,
    licences,
    lineage,
)
from onevision.report.task_scores import task_curves, task_rows


def write_report(pipeline: PipelineFolders, output: str | Path | None = None) -> Path:
    """Write the page to `output`, `report.html` in the pipeline's root if not given, and return its path.

    What is missing is named in the page.

    Raises:
        InputError: there is nothing to report on.
        StorageError: the disk is full.
    """
    path = Path(output) if output else pipeline.root / "report.html"
    results = read_results(pipeline)
    write_text(path, render(results, summarise(results)))
    return path


def render(results: Results, summary: dict[str, Any]) -> str:
    """The page as HTML."""
    return page("report.html", _context(results, summary))


def _context(results: Results, summary: dict[str, Any]) -> dict[str, Any]:
    overall, stages = summary["overall"], results.stages
    scores = accuracies(summary["categories"])
    order = {row.name: place for place, row in enumerate(scores)}
    losses, loss_axis, boundaries = category_losses(stages) if stages else ([], None, [])
    packs = results.packs["summary"] if results.packs else None
    scored, score_axis = task_curves(stages)
    return {
        "title": results.folders.root.absolute().name,
        "root": str(results.folders.root),
        "summary": summary,
        "overall": overall,
        "facts": _facts(results, summary),
        "cards": _cards(summary),
        "above_chance": _above_chance(summary),
        "total": Accuracy("All", overall["n"], overall["before"], overall["after"], overall["chance"]),
        "accuracies": scores,
        "languages": languages(results),
        "groups": sorted(example_groups(results), key=lambda group: order[group.category]),
        "panels": panels(stages) if stages else [],
        "strips": strips(stages) if stages else [],
        "category_losses": sorted(losses, key=lambda loss: order.get(loss.name, len(order))),
        "category_axis": loss_axis,
        "boundaries": boundaries,
        "task_curves": scored,
        "score_axis": score_axis,
        "task_rows": task_rows(stages),
        "stage_table": stage_table(stages),
        "peak": _peak(summary["hardware"]),
        "flow": _flow(results, summary),
        "fill_chart": histogram(in_percent(packs["fill_histogram"]), "{:.0f} %") if packs else None,
        "length_chart": histogram(packs["length_histogram"], "{:,.0f}", trim=True) if packs else None,
        "category_table": category_table(results),
        "selects": results.selection is not None,
        "language_counts": language_counts(results),
        "image_counts": image_counts(results),
        "licences": licences(results),
        "lineage": lineage(results),
        "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
        "next_steps": _next_steps(results),
    }


def _facts(results: Results, summary: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    hardware, versions = summary["hardware"], summary["versions"]
    if results.stages:
        facts.append(("Model", model_line(results.stages, summary["model"]["parameters"])))
        steps = [f"{stage_title(stage.name)}: {stage.rows[-1]['step']:,} steps" for stage in results.stages]
        facts.append(("Training", ", ".join(steps)))
    if hardware:
        device = "CPU" if hardware["device"] == "CPU" else f"{hardware['world_size']} x {hardware['device']}"
        facts.append(("Hardware", f"{device}, {hardware['processor']}, {hardware['cores']} cores"))
        software = [
            f"{name} {versions[name]}" for name in ("python", "torch", "megatron-core") if name in versions
        ]
        commit = [f"commit {summary['commit'][:12]}"] if summary["commit"] else []
        facts.append(("Software", ", ".join(software + commit)))
    return facts


def _above_chance(summary: dict[str, Any]) -> str:
    scored = [
        entry for entry in summary["categories"].values() if None not in (entry["after"], entry["chance"])
    ]
    above = sum(entry["after"] > entry["chance"] for entry in scored)
    return f"Above that in {above} of {len(scored)} categories." if scored else ""


def _cards(summary: dict[str, Any]) -> list[Card]:
    cards = []
    stages, packs, samples = summary["stages"], summary["packs"], summary["samples"]
    if stages:
        first, last = next(iter(stages.values())), list(stages.values())[-1]
        name = stage_title(list(stages)[-1])
        cards.append(Card("Loss", f"{last['loss_last']:.2f}", f"{first['loss_first']:.2f} at the first step"))
        note = f"{name}, {last['samples_per_second']:,.0f} samples/s"
        cards.append(Card("Tokens a second", f"{last['tokens_per_second']:,.0f}", note))
        cards.append(Card("MFU", percent(last["mfu"]), f"{name}, HFU {percent(last['hfu'])}"))
    if packs:
        note = f"{packs['packs']:,} packs of {packs['sequence_length']:,} tokens"
        cards.append(Card("Pack fill", percent(packs["fill"], 1), note))
    if samples:
        note = f"{samples['rejected']:,} rejected, {samples['overlong'] or 0:,} too long"
        cards.append(Card("Samples", f"{samples['in']:,}", note))
    cards.append(Card("Time", duration(summary["seconds"]), "data, training, evaluation"))
    return cards


def _flow(results: Results, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures of the data, from what came in to what is trained on."""
    if results.corpus is None:
        return []
    samples, corpus, packs = summary["samples"], results.corpus["summary"], summary["packs"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in samples["rejects_by_reason"].items())
    tokens = corpus["text_tokens"] + corpus["vision_tokens"]
    flow = [
        (f"{samples['in']:,}", "records in"),
        (f"{samples['rejected']:,}", f"rejected: {reasons}" if reasons else "rejected"),
        (f"{corpus['images']:,}", "images"),
        (f"{tokens:,}", f"tokens, {percent(corpus['vision_tokens'] / max(tokens, 1))} of them from images"),
    ]
    if packs:
        flow += [
            (f"{samples['packed']:,}", f"samples packed, {samples['overlong']:,} too long"),
            (f"{packs['packs']:,}", f"packs of {packs['mean_samples_per_pack']:.1f} samples"),
        ]
    return flow


def _peak(hardware: dict[str, Any]) -> str:
    if not hardware:
        return "the device's peak"
    return f"{hardware['peak_tflops']:,g} TFLOP/s ({hardware['peak_source']})"


def _next_steps(results: Results) -> list[tuple[str, str]]:
    """What a reader can do now, each with its command line."""
    root = results.folders.root
    steps = [("See every curve, zoom and compare runs:", f".venv/bin/tensorboard --logdir {quote(str(root))}")]
    if not results.stages:
        return steps
    last = results.stages[-1]
    preset = last.recipe.model.preset
    steps += [
        ("Take the model to transformers, as a Hugging Face directory:", make_command("export", last.folder)),
        (
            f"Train {stage_title(last.name)} again with another setting, beside this run:",
            f'make {last.recipe.stage} MODEL={preset} RUN=second ARGS="optimizer.lr={last.recipe.optimizer.lr / 2:g}"',
        ),
        (
            "Repeat exactly this stage from its run folder (done steps are not repeated):",
            f".venv/bin/python -m jobs train {quote(str(last.folder / 'recipe.yaml'))}",
        ),
        (
            "Use your own data: a folder with records.jsonl and images becomes a corpus, then packs:",
            f'make corpus pack MODEL={preset} ARGS="data.source=FOLDER data.corpus=runs/mine/corpus '
            'data.packs=runs/mine/packs"',
        ),
    ]
    return steps
