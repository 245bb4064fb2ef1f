"""The samples that a run is to train on, told from its packs, and held against what its rows say it was given."""

from __future__ import annotations

from pathlib import Path

from jobs.arguments import parse, run_recipe
from onevision.data.ledger import Plan, digest, place_of
from onevision.errors import DataError, InputError
from onevision.training.history import read_metrics
from onevision.training.inputs import open_sources


def run(arguments: list[str]) -> int:
    """python -m jobs samples RUN [step=N]

    With a step (they count from 1): a line for each sample of it, with its id, shard and category, and tabs between
    them. Without: compares the samples of every step in metrics.jsonl, by their digest, with those that were planned.
    No image is read.
    """
    folder, overrides, own = parse(arguments, "samples", "run folder", ("step",))
    recipe = run_recipe(folder, overrides)
    sources = open_sources(recipe.data)
    plan = Plan(sources, recipe.seed, recipe.train.global_batch_size)
    if "step" in own:
        for number in plan.samples(_step(own["step"], recipe.train.steps)):
            place = place_of(sources, int(number))
            print(place.id, place.shard, place.category, sep="\t")
        return 0
    return _compare(folder, plan)


def _compare(folder: Path, plan: Plan) -> int:
    rows = [row for row in read_metrics(folder) if "samples_digest" in row]
    other = [row["step"] for row in rows if row["samples_digest"] != digest(plan.samples(row["step"]))]
    if other:
        steps = ", ".join(map(str, other[:8])) + (f" and {len(other) - 8} more" if len(other) > 8 else "")
        raise DataError(
            f"{folder / 'metrics.jsonl'}: of {len(rows)} steps {len(other)} had other samples than planned: {steps}; "
            "packs or corpus are not those of the run"
        )
    if not rows:
        raise InputError(f"{folder / 'metrics.jsonl'} has no step with a digest of its samples: train first")
    out = [row["step"] for row in rows if row.get("action") == "left out"]
    print(f"{folder}: {len(rows)} steps, to {rows[-1]['step']}: the samples of each are those planned")
    if out:
        print(f"left out, after a rewind: steps {', '.join(map(str, out))}")
    return 0


def _step(text: str, steps: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= steps:
        raise InputError(f"step={text} is not one of the run's steps, 1 to {steps}")
    return int(text)
