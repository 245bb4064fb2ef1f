"""The run folder: recipe, lineage, lock, and the key that says whether it is the same run. Needs no torch."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from onevision.errors import InputError
from onevision.files import read_json, read_record, storage_errors, write_json
from onevision.locks import PATIENCE, sole_writer
from onevision.recipe import ENTRY_LISTS, Recipe, recipe_dict, save_recipe

# What may change between two starts of the same run, because it changes no result. The parallel layout, like the number
# of ranks, changes results by rounding only, and so does the backend: a run must be able to go on when the cluster
# gives it other nodes, or with less memory (recompute). Precision and FP8 scaling decide. What follows a bad step
# changes nothing before there is one, and then a person must be able to decide otherwise: what was done, and by which
# threshold, stays in bad_steps.jsonl and in the rows of those steps.
FREE_KEYS = (
    "name",
    "description",
    "output",
    "parallel",
    "performance",
    "profile",
    "model.backend",
    "model.attention",
    "model.recompute",
    "model.recompute_layers",
    "model.recompute_modules",
    "checkpoint",
    "evaluation",
    "concepts",  # what was drawn by them is known by the fingerprints of corpus and packs
    "train.log_interval",
    "train.threads",
    "train.hang_seconds",
    "train.on_divergence",
    "train.spike_factor",
    "train.spike_window",
    "train.max_skipped_steps",
    "train.rerun",
    "train.deterministic",  # rounding, as the backend
    "train.peak_tflops",
    # How the corpus was imported; what came of it is known by its fingerprint.
    "data.source",
    "data.image_root",
    "data.format",
    "data.columns",
    "data.shard_samples",
    "data.verify_images",
    "data.filters",
    "data.min_caption",
    "data.max_caption",
    "data.reject_threshold",  # in training as `train.on_divergence`: what a person may decide when it has ended a run
    "data.workers",
    "data.prefetch_packs",
    "data.resize",  # the same values, bit for bit
    "data.shards",
    "data.mixture.shards",  # of every entry
)


def deciding_values(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe that decide a result, as a flat mapping of dotted keys; entries of a list of sections have
    their number: data.mixture[0].weight."""
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if _free(key):
                continue
            if isinstance(value, dict):
                walk(value, f"{key}.")
            elif key in ENTRY_LISTS:
                for number, entry in enumerate(value):
                    walk(entry, f"{key}[{number}].")
            else:
                flat[key] = value

    walk(recipe_dict(recipe), "")
    return flat


def _free(key: str) -> bool:
    return re.sub(r"\[\d+\]", "", key) in FREE_KEYS


def run_folder(recipe: Recipe, inputs: dict[str, str]) -> Path:
    """The run folder of a recipe, which may not be there yet; `inputs` names the fingerprints of what the run reads.

    Raises:
        InputError: the folder belongs to a run with other settings or inputs, which are named.
    """
    if not recipe.output:
        raise InputError("output is empty: name the run folder with output=runs/NAME")
    if problem := conflict(recipe, inputs):
        raise InputError(problem)
    return Path(recipe.output)


def open_run(recipe: Recipe, inputs: dict[str, str]) -> Path:
    """Create or reopen the run folder of a recipe. To be called by whoever holds its lock (`lock_run`): a start that is
    refused leaves the recipe of the one that trains there as it is.

    Raises:
        InputError: as `run_folder`.
    """
    run = run_folder(recipe, inputs)
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        record = run / "run.json"
        if not record.exists():
            write_json(record, {"id": secrets.token_hex(8), "values": deciding_values(recipe), "inputs": inputs})
        save_recipe(recipe, run / "recipe.yaml")
    return run


def run_id(run: Path) -> str:
    """What tells a run from one that was in its folder before; empty for one that is older than these numbers."""
    return str(read_json(run / "run.json").get("id", ""))


def conflict(recipe: Recipe, inputs: dict[str, str], unknown: Collection[str] = ()) -> str | None:
    """Why the recipe's run folder cannot be used: it holds a run with other settings or inputs. None if it can.
    Inputs named in `unknown` are not compared.

    Raises:
        InputError: run.json is not readable.
    """
    record = Path(recipe.output) / "run.json"
    if not record.exists():
        return None
    changed = changes(read_record(record, values=dict, inputs=dict), recipe, inputs, unknown)
    if not changed:
        return None
    return (
        f"{recipe.output} holds a run made with other settings: {', '.join(changed)}; "
        "choose another output, or remove the folder to start over"
    )


def changes(before: dict[str, Any], recipe: Recipe, inputs: dict[str, str], unknown: Collection[str] = ()) -> list[str]:
    """The deciding values and inputs that are others than those of a run.json, `before`. A path is no other value where
    the fingerprint of what lies there is the same."""
    # A run of an older version has no value for a key that is newer: it ran as the key's default does. It may have one
    # for a key that has come to be free.
    values = deciding_values(Recipe()) | {key: value for key, value in before["values"].items() if not _free(key)}
    return [
        f"{key}={after.get(key)!r} (was {earlier.get(key)!r})"
        for earlier, after in [(values, deciding_values(recipe)), (before["inputs"], inputs)]
        for key in sorted({*earlier, *after} - set(unknown))
        if earlier.get(key) != after.get(key) and not _moved(key, before["inputs"], inputs)
    ]


def _moved(key: str, before: dict[str, str], inputs: dict[str, str]) -> bool:
    """Whether a key of the recipe names a place of data whose content is the same as before: data may move."""
    place = re.fullmatch(r"data\.(?:mixture\[(\d+)\]\.)?(corpus|balanced|packs|tokenizer)", key)
    if place is None:
        return False
    name = "corpus" if place[2] == "balanced" else place[2]
    name = name if name in inputs else f"{name}.{place[1]}"  # as `onevision.data.sources.by_source` names them
    return name in inputs and inputs[name] == before.get(name)


def lock_run(run: Path, patience: float = PATIENCE) -> AbstractContextManager[None]:
    """Keep two processes from training in one folder, which is made: `onevision.locks.sole_writer`."""
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    return sole_writer(run / ".lock", run, patience)
