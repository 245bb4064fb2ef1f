"""What the disturbed runs learn from: a few of the demo's drawings, imported and packed, and a recipe of seconds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onevision.corpus.build import build_corpus
from onevision.demo.source import build_source
from onevision.demo.tokenizer import build_tokenizer
from onevision.packing.build import build_packs
from onevision.recipe import Recipe, load_recipe, recipe_from, save_recipe

RECORDS = {"digits": 36, "counting": 12, "text": 16}
STEPS = 6
INTERVAL = 2  # steps between checkpoints
SEQUENCE_LENGTH = 192


def make_inputs(folder: Path) -> Path:
    """Draw, import and pack a corpus of two shards below `folder`; returns the file of the recipe that reads it.

    Two shards, so that one of them can go while the other is read.
    """
    data: dict[str, Any] = {
        "source": str(folder / "source" / "train"),
        "corpus": str(folder / "corpus"),
        "packs": str(folder / "packs"),
        "tokenizer": str(folder / "tokenizer"),
        "sequence_length": SEQUENCE_LENGTH,
        "max_pixels": 84 * 84,
        "shard_samples": 32,
        "workers": 1,
        "prefetch_packs": 1,
    }
    recipe = recipe_from(
        {
            "name": "faults",
            "data": data,
            "model": {"preset": "tiny"},
            "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "eps": 1e-8},
            "train": {
                "precision": "fp32",
                "global_batch_size": 4,
                "micro_batch_size": 1,
                "steps": STEPS,
                "threads": 1,
                "peak_tflops": 1.0,
            },
            "checkpoint": {"interval": INTERVAL, "keep": 2},
        }
    )
    with contextlib.redirect_stdout(io.StringIO()):
        build_source(folder / "source", 0, RECORDS, heldout={})
        build_tokenizer(Path(recipe.data.source), Path(recipe.data.tokenizer), vocab_size=1024)
    save_recipe(recipe, folder / "recipe.yaml")
    import_and_pack(folder / "recipe.yaml", Path(recipe.data.source), folder)
    return folder / "recipe.yaml"


def import_and_pack(file: Path, source: Path, folder: Path) -> None:
    """Make `corpus` and `packs` in a folder, of a source and by the settings of a recipe."""
    places = {"source": source, "corpus": folder / "corpus", "packs": folder / "packs"}
    data = load_recipe(file, [f"data.{key}={path}" for key, path in places.items()]).data
    with contextlib.redirect_stdout(io.StringIO()):
        build_corpus(data, Path(data.corpus))
        build_packs(data, Path(data.packs))


def recipe_for(file: Path, run: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of a run folder, with overrides."""
    return load_recipe(file, [f"name={run.name}", f"output={run}", *settings])
