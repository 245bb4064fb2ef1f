"""A pipeline's folders for the report's tests: corpus and packs are real and small, the rows of training and the
answers are made up here in the shape in which training and evaluation write them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onevision.corpus.build import build_corpus
from onevision.corpus.reader import CorpusReader
from onevision.evaluation.accuracy import questions
from onevision.files import read_json, write_json
from onevision.packing.build import build_packs
from onevision.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe, TrainRecipe, save_recipe
from onevision.report.results import PipelineFolders
from tests.fixtures import sample_record, tiny_tokenizer, write_records

ENVIRONMENT = {
    "python": "3.11.0",
    "packages": {"torch": "2.0", "megatron-core": "0.16.1", "numpy": "2.4"},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "host": "test",
    "system": "Linux",
    "processor": "A processor",
    "cores": 2,
    "memory_gb": 24.0,
    "device": "CPU",
    "world_size": 1,
    "threads": 2,
    "peak_tflops": 0.1,
    "peak_source": "measured",
}
STAGES = {
    "stage1": (4, 6.2, 5.1),
    "stage1_5": (40, 5.1, 0.8),
    "stage2": (30, 0.9, 0.3),
}  # steps, first and last loss


def folders(root: Path) -> PipelineFolders:
    """The folders of a pipeline below `root`, as the demo lays them out."""
    return PipelineFolders(
        root=root,
        corpus=root / "corpus",
        heldout=root / "heldout",
        packs=root / "packs",
        stage0=root / "stage0",
        stages={name: root / name for name in STAGES},
        before=root / "before",
        after=root / "after",
    )


def build_data(root: Path) -> None:
    """A corpus of 60 samples, its packs, and a held-out corpus of 24, some with no, two or three images."""
    tiny_tokenizer(root / "tokenizer")
    shapes = [(1, 1), (0, 1), (2, 1), (1, 2), (3, 1)]
    for name, rows in (("corpus", range(60)), ("heldout", range(100, 124))):
        records = [sample_record(i, *shapes[i % len(shapes)]) for i in rows]
        write_records(root / "source" / name, records)
        data = DataRecipe(
            source=str(root / "source" / name),
            corpus=str(root / "corpus"),
            tokenizer=str(root / "tokenizer"),
            sequence_length=512,
            max_pixels=50176,
        )
        build_corpus(data, root / name, report=lambda line: None)
    build_packs(data, root / "packs", report=lambda line: None)


def write_stage(
    root: Path, name: str, steps: int, first: float, last: float, *, stop_at: int = 0, resumed: int = 0
) -> None:
    """A run folder whose loss falls from `first` to `last`; `stop_at` leaves it unfinished after that step."""
    folder = root / name
    corpus, packs = read_json(root / "corpus" / "step.json"), read_json(root / "packs" / "step.json")
    names = list(corpus["summary"]["samples_by_category"])
    inputs = {"packs": packs["summary"]["fingerprint"], "corpus": corpus["summary"]["fingerprint"]}
    recipe = Recipe(
        name=name,
        stage=name,
        output=str(folder),
        model=ModelRecipe(preset="tiny", freeze=["vision", "language"] if name == "stage1" else []),
        optimizer=OptimizerRecipe(lr=1e-3, min_lr=1e-5, warmup_fraction=0.05),
        train=TrainRecipe(steps=steps, global_batch_size=4, micro_batch_size=2, precision="fp32"),
    )
    folder.mkdir(parents=True)
    save_recipe(recipe, folder / "recipe.yaml")
    write_json(folder / "environment.json", ENVIRONMENT)
    write_json(folder / "lineage.json", {"inputs": inputs, "fingerprint": f"{len(name):032x}"})
    done = stop_at or steps
    rows = [_row(step, steps, first, last, names) for step in range(1, done + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not stop_at:
        seconds = sum(row["step_seconds"] for row in rows if row["step"] > resumed)
        summary = {"steps": steps, "loss": rows[-1]["loss"], "seconds": seconds, "resumed_after": resumed}
        write_json(folder / "step.json", {"step": name, "inputs": inputs, "summary": summary})


def write_evaluation(root: Path, name: str, shares: Sequence[float]) -> None:
    """An evaluation whose categories answer `shares` of their questions rightly, in turn."""
    asked = questions(CorpusReader(root / "heldout"))
    folder = root / name
    folder.mkdir()
    categories: dict[str, list[bool]] = {}
    lines = []
    for question in asked:
        seen = categories.setdefault(question.category, [])
        share = shares[list(categories).index(question.category) % len(shares)]
        correct = math.floor((len(seen) + 1) * share + 1e-9) > math.floor(len(seen) * share + 1e-9)
        seen.append(correct)
        row = {
            "row": question.row,
            "turn": question.turn,
            "id": question.id,
            "category": question.category,
            "language": question.language,
            "text": question.text,
            "answer": question.answer,
            "output": question.answer if correct else "<wrong & 错>\u2028second line",
            "correct": correct,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    summary = {
        "categories": {
            category: {"accuracy": sum(seen) / len(seen), "n": len(seen)}
            for category, seen in categories.items()
        },
        "checkpoint": "stage2/checkpoints/step_00000030",
        "step": 30,
        "fingerprint": f"{len(lines):032x}",
    }
    heldout = read_json(root / "heldout" / "step.json")["summary"]["fingerprint"]
    inputs = {"checkpoint": "c" * 32, "corpus": heldout}
    write_json(
        folder / "step.json", {"step": "evaluate", "inputs": inputs, "summary": summary, "seconds": 3.5}
    )


def build_pipeline(root: Path) -> PipelineFolders:
    """All folders of a finished pipeline."""
    build_data(root)
    write_results(root)
    return folders(root)


def write_results(root: Path, shares: Sequence[float] = (0.9, 0.5, 0.6), scale: float = 1.0) -> None:
    """What comes after corpus and packs; `scale` times the steps of `STAGES`."""
    (root / "stage0").mkdir()
    start = {"step": "stage0", "summary": {"parameters": 2_400_000, "steps": 0}}
    write_json(root / "stage0" / "step.json", start)
    write_json(root / "stage0" / "lineage.json", {"inputs": {}, "fingerprint": "0" * 32})
    for name, (steps, first, last) in STAGES.items():
        write_stage(root, name, round(steps * scale), first, last)
    write_evaluation(root, "before", (0.0,))
    write_evaluation(root, "after", shares)


def _row(step: int, steps: int, first: float, last: float, names: Sequence[str]) -> dict[str, object]:
    rng = np.random.default_rng((step, steps))
    loss = (last + (first - last) * math.exp(-5 * step / steps)) * float(rng.lognormal(0, 0.06))
    seconds = 0.4 * float(rng.lognormal(0, 0.08)) + (2.0 if step == 1 else 0.0)
    tokens = 4000 + int(rng.integers(0, 96))
    return {
        "step": step,
        "loss": loss,
        "lr": 1e-3 * min(1.0, step / max(1, 0.05 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2,
        "grad_norm": 1.0 + float(rng.random()),
        "tokens": tokens,
        "slots": 4096,
        "samples": 90,
        "patches": 2400,
        "target_tokens": 300,
        "loss_by_category": {
            name: loss * (0.4 + 0.25 * i) * float(rng.lognormal(0, 0.15)) for i, name in enumerate(names)
        },
        "step_seconds": seconds,
        "data_seconds": 0.002,
        "tokens_per_second": tokens / seconds,
        "samples_per_second": 90 / seconds,
        "flops": 4e10,
        "hardware_flops": 4.4e10,
        "mfu": 0.35 * 0.4 / seconds,
        "hfu": 0.39 * 0.4 / seconds,
        "skipped": 0,
        "memory_mb": 900.0,
        "epoch": step * 4 / 60,
    }
