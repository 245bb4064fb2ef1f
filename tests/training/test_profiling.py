"""Steps of a run that are watched leave a trace, and end in the same weights."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from onevision.recipe import Recipe
from onevision.training.history import read_metrics
from onevision.training.loop import train


def test_a_watched_run_leaves_its_trace_and_the_same_losses(make_recipe: Callable[..., Recipe]) -> None:
    plain = make_recipe("plain", steps=3)
    watched = make_recipe("watched", steps=3, profile={"first_step": 2, "steps": 1})
    train(plain)
    train(watched)
    losses = [[row["loss"] for row in read_metrics(recipe.output)] for recipe in (plain, watched)]
    assert losses[0] == losses[1]
    traces = list((Path(watched.output) / "profile").iterdir())
    assert [path.name for path in traces] == ["trace-rank0.json.gz"]
    names = {event.get("name") for event in json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]}
    assert "aten::mm" in names
    assert not (Path(plain.output) / "profile").exists()


def test_a_run_that_ends_while_it_is_watched_leaves_what_was_seen(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(steps=2, profile={"first_step": 2, "steps": 5})
    train(recipe)
    assert (Path(recipe.output) / "profile" / "trace-rank0.json.gz").exists()
