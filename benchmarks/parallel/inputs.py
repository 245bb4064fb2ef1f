"""What the layouts learn from: four small corpora, drawn here, and weights to start from."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onevision.corpus.build import build_corpus
from onevision.demo.tokenizer import build_tokenizer
from onevision.packing.build import build_packs
from onevision.recipe import Recipe, recipe_from
from onevision.training.loop import initialise

LENGTH = 256  # tokens a pack
Sizes = list[tuple[int, int]]
# Width and height of the images of sample i.
KINDS: dict[str, Callable[[int], Sizes]] = {
    "single": lambda i: [(56 + 28 * (i % 3), 56 + 28 * (i % 2))],
    "several": lambda i: [(56, 56 + 28 * (k % 2)) for k in range(2 + i % 3)],
    "text": lambda i: [],
    "sparse": lambda i: [(56, 56)] if i % 7 == 0 else [],  # few packs have more than one
    "huge": lambda i: [(392, 336)],  # 168 of the 256 tokens
}
# Corpora and their weights. Packs hold samples of one corpus: with "unequal" some ranks have text alone, others a huge
# image, in the same step.
DATA: dict[str, dict[str, float]] = {
    "single": {"single": 1},
    "several": {"several": 1},
    "text": {"text": 1},
    "sparse": {"sparse": 1},
    "unequal": {"text": 2, "single": 1, "several": 1, "huge": 1},
}
FREEZE = {"stage1": ["vision", "language"], "stage1_5": [], "stage2": []}


def make_inputs(folder: Path) -> None:
    """Draw, import and pack every corpus of `KINDS` below `folder`, and initialise weights."""
    with contextlib.redirect_stdout(io.StringIO()):
        for kind, sizes in KINDS.items():
            _draw(folder / "source" / kind, kind, sizes)
        build_tokenizer(folder / "source" / "single", folder / "tokenizer", vocab_size=400)
        for kind in KINDS:
            data = replace(recipe_from({"data": _section(folder, kind)}).data, source=str(folder / "source" / kind))
            build_corpus(data, Path(data.corpus))
            build_packs(data, Path(data.packs))
        initialise(
            recipe_from({"name": "start", "output": str(folder / "start"), "model": {"preset": "mini"}, **_FP32})
        )


_FP32: dict[str, Any] = {"train": {"precision": "fp32", "threads": 1}}


def _section(folder: Path, kind: str) -> dict[str, Any]:
    return {
        "corpus": str(folder / kind / "corpus"),
        "packs": str(folder / kind / "packs"),
        "tokenizer": str(folder / "tokenizer"),
        "sequence_length": LENGTH,
        "max_pixels": 200_704,
        "workers": 0,
    }


def recipe_for(
    folder: Path,
    output: Path,
    data: str,
    stage: str = "stage1_5",
    parallel: dict[str, Any] | None = None,
    performance: dict[str, Any] | None = None,
    **train: Any,
) -> Recipe:
    """A recipe of the mini model on the corpora of `DATA[data]` below `folder`."""
    weights = DATA[data]
    (first, *_) = weights
    section = _section(folder, first)
    if len(weights) > 1:
        section |= {"corpus": "", "packs": ""}
        section["mixture"] = [
            {"corpus": str(folder / kind / "corpus"), "packs": str(folder / kind / "packs"), "weight": weight}
            for kind, weight in weights.items()
        ]
    settings = {"steps": 10, "global_batch_size": 4, "init_from": str(folder / "start"), "peak_tflops": 1.0}
    return recipe_from(
        {
            "name": output.name,
            "stage": stage,
            "output": str(output),
            "model": {"preset": "mini", "freeze": FREEZE[stage]},
            "data": section,
            "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "eps": 1e-8},
            "parallel": parallel or {},
            "performance": performance or {},
            "checkpoint": {"interval": 1000, "keep": 3},
            "train": {**_FP32["train"], **settings, **train},
        }
    )


def _draw(folder: Path, kind: str, sizes: Callable[[int], Sizes], samples: int = 120) -> None:
    """A records folder of `samples` samples, whose images are noise."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(sorted(KINDS).index(kind))
    lines = []
    for i in range(samples):
        names = []
        for k, (width, height) in enumerate(sizes(i)):
            names.append(f"images/{i}_{k}.png")
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / names[-1])
        question = [{"type": "image"} for _ in names] + [{"type": "text", "text": "What is it? " * (1 + i % 5)}]
        answer = " ".join(str(number) for number in random.integers(0, 1000, 1 + int(random.integers(0, 9))))
        record = {
            "id": f"{kind}-{i}",
            "images": names,
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": [{"type": "text", "text": f"It is {answer}."}]},
            ],
            "category": kind,
            "language": "en",
            "source": "drawn",
            "license": "CC0-1.0",
        }
        lines.append(json.dumps(record) + "\n")
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
