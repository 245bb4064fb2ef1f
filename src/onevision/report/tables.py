"""The report's tables: accuracy, the data, and what was made from what."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onevision.progress import duration
from onevision.report.curves import stage_title
from onevision.report.page import Lineage
from onevision.report.results import Evaluation, Results

SOURCES_SHOWN = 12  # names a licence


@dataclass(frozen=True)
class Accuracy:
    """Shares (0 to 1) of right answers to `n` questions; `low` and `high` bound the one after training."""

    name: str
    n: int
    before: float | None
    after: float | None
    chance: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Licence:
    """Samples under a licence, and where they come from."""

    name: str
    samples: int
    sources: list[str]
    more: int


def accuracies(categories: dict[str, dict[str, Any]]) -> list[Accuracy]:
    """One row a category of the summary, the best first."""
    rows = []
    for name, entry in categories.items():
        bounds = wilson(entry["after"], entry["n"]) if entry["after"] is not None else (None, None)
        rows.append(Accuracy(name, entry["n"], entry["before"], entry["after"], entry["chance"], *bounds))
    return sorted(rows, key=lambda row: (-(row.after or 0.0), -(row.before or 0.0), row.name))


def languages(results: Results) -> list[Accuracy]:
    """One row a language, the most frequent first."""

    def count(evaluation: Evaluation | None) -> dict[str, list[bool]]:
        found = defaultdict(list)
        for answer in evaluation.answers if evaluation else []:
            found[answer["language"]].append(answer["correct"])
        return found

    before, after = count(results.before), count(results.after)
    shown = after or before
    return [
        Accuracy(name, len(shown[name]), _mean(before.get(name)), _mean(after.get(name)), None)
        for name in sorted(shown, key=lambda name: (-len(shown[name]), name))
    ]


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a share of `n` trials (Wilson 1927): 95 % with z = 1.96."""
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def category_table(results: Results) -> list[dict[str, Any]]:
    """Samples, tokens, samples of the balanced selection and held-out samples of each category."""
    if results.corpus is None:
        return []
    summary = results.corpus["summary"]
    held_out = results.heldout["summary"]["samples_by_category"] if results.heldout else {}
    selected = results.selection["summary"]["samples_by_category"] if results.selection else None
    return [
        {
            "name": name,
            "samples": samples,
            "share": samples / max(summary["samples"], 1),
            "tokens": summary["tokens_per_category"][name],
            "selected": None if selected is None else selected.get(name, 0),
            "heldout": held_out.get(name, 0),
        }
        for name, samples in sorted(
            summary["samples_by_category"].items(), key=lambda item: (-item[1], item[0])
        )
    ]


def language_counts(results: Results) -> list[tuple[str, int]]:
    """Training samples of each language, the most frequent first."""
    corpus = results.training_corpus
    if corpus is None:
        return []
    counts = np.bincount(corpus.index.language, minlength=len(corpus.index.languages)).tolist()
    return sorted(zip(corpus.index.languages, counts, strict=True), key=lambda item: (-item[1], item[0]))


def image_counts(results: Results) -> list[tuple[int, int]]:
    """How many training samples have how many images."""
    corpus = results.training_corpus
    if corpus is None:
        return []
    images, counts = np.unique(np.diff(corpus.index.image_start), return_counts=True)
    return list(zip(images.tolist(), counts.tolist(), strict=True))


def licences(results: Results) -> list[Licence]:
    """Licences of the training samples, the most frequent first. A sample of several sources names them with `; `."""
    corpus = results.training_corpus
    if corpus is None:
        return []
    index = corpus.index
    samples: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    pairs, counts = np.unique(np.stack([index.license, index.source]), axis=1, return_counts=True)
    for licence, source, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        name = index.licenses[licence]
        samples[name] += count
        for part in index.sources[source].split("; "):
            sources[name][part] += count
    return [
        Licence(
            name,
            count,
            [source for source, _ in sources[name].most_common(SOURCES_SHOWN)],
            max(0, len(sources[name]) - SOURCES_SHOWN),
        )
        for name, count in samples.most_common()
    ]


def lineage(results: Results) -> list[Lineage]:
    """The chain from the source's bytes to the answers."""
    folders = results.folders
    rows = []

    def add(step: str, folder: Path, fingerprint: str, made_from: str, seconds: float | None) -> None:
        shown = folder.relative_to(folders.root) if folder.is_relative_to(folders.root) else folder
        took = "" if seconds is None else duration(seconds) if seconds >= 1 else "< 1 s"
        rows.append(Lineage(step, str(shown), fingerprint, made_from, took))

    data = [("Corpus", folders.corpus, results.corpus), ("Held-out corpus", folders.heldout, results.heldout)]
    for name, folder, record in data:
        if record:
            inputs = record["inputs"]
            if record["step"] == "balance":  # a selection of another corpus
                made_from = f"corpus {inputs['corpus'][:12]}, concepts {inputs['concepts'][:12]}"
            else:
                source = record["summary"]["source"]
                made_from = f"source {source[:12]}, tokenizer {inputs['tokenizer'][:12]}"
            add(name, folder, record["summary"]["fingerprint"], made_from, record["seconds"])
    if results.packs:
        made_from = f"corpus {results.packs['inputs']['corpus'][:12]}"
        add(
            "Packs",
            folders.packs,
            results.packs["summary"]["fingerprint"],
            made_from,
            results.packs["seconds"],
        )
    if results.selection:
        read = next(stage.recipe.data for stage in results.stages if stage.recipe.data.balanced)
        inputs, summary = results.selection["inputs"], results.selection["summary"]
        made_from = f"corpus {inputs['corpus'][:12]}, concepts {inputs['concepts'][:12]}"
        seconds = results.selection["seconds"]
        add("Balanced selection", Path(read.balanced), summary["fingerprint"], made_from, seconds)
        packs = results.selection_packs
        if packs and packs != results.packs:
            made_from = f"selection {packs['inputs']['corpus'][:12]}"
            add("Packs of it", Path(read.packs), packs["summary"]["fingerprint"], made_from, packs["seconds"])
    if results.start:
        add("Start weights", folders.stage0, results.start_fingerprint, "", None)
    for stage in results.stages:
        parts = [f"packs {stage.inputs['packs'][:12]}"] if "packs" in stage.inputs else []
        if "init_from" in stage.inputs:
            parts.append(f"weights {stage.inputs['init_from'][:12]}")
        if commit := stage.environment.get("commit"):
            parts.append(f"commit {commit[:12]}")
        seconds = stage.summary["seconds"] if stage.summary else None
        add(stage_title(stage.name), stage.folder, stage.fingerprint, ", ".join(parts), seconds)
    for name, folder, evaluation in (
        ("Evaluation before", folders.before, results.before),
        ("Evaluation after", folders.after, results.after),
    ):
        if evaluation:
            inputs = evaluation.record["inputs"]
            parts = [f"{part} {inputs[part][:12]}" for part in ("checkpoint", "corpus") if part in inputs]
            fingerprint = evaluation.record["summary"].get("fingerprint", "")
            add(name, folder, fingerprint, ", ".join(parts), evaluation.record["seconds"])
    return rows


def _mean(values: list[bool] | None) -> float | None:
    return sum(values) / len(values) if values else None
