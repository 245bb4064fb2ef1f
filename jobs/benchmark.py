"""The throughput benchmark as a job: the stages of a model on all ranks of a place, then peers on its first GPU."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

from jobs.cluster import Work
from jobs.numbers import whole as whole_number
from jobs.place import SETTINGS, place_of, start
from jobs.ranks import ready_model
from onevision.errors import InputError
from onevision.recipe import Recipe

STAGES = ("stage1", "stage1_5", "stage2")
OWN = {
    "model": "8b",
    "stages": ",".join(STAGES),
    "peers": "all",
    "micro_batches": "0",
    "warmup": "3",
    "steps": "10",
    "profile": "",
    "data": "auto",
    "out": "",
}


def run(arguments: list[str]) -> int:
    """python -m jobs bench [model=8b] [nodes=N] [time=D-HH:MM:SS] [site=NAME] [key=value ...]

    Throughput of stage 1, 1.5 and 2 by their recipes, on a Slurm cluster or on all GPUs of this machine: real steps
    of the training loop, on the recipe's own packs where they exist, else on synthetic ones, with random weights.
    Then peers beside our language model alone, on one GPU.

      model=8b                  a folder of jobs/recipes, or another preset with the recipes of 8B
      stages=stage1,stage1_5,stage2
      peers=all                 names of benchmarks/throughput/tries.py; none
      micro_batches=0           of a rank and step; 0: the recipe's global batch, or at least one
      warmup=3, steps=10        steps not measured, and measured
      data=auto                 recipe, synthetic; auto: the recipe's packs where they exist
      profile=trace,memory      leave a trace, the history of the GPU's memory, of every rank
      out=DIR                   throughput.json, throughput.png, log/, rows/ (default runs/bench-MODEL)
    """
    from benchmarks.throughput.tries import stage_recipe, with_micro_batches

    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unnamed := [argument for argument in arguments if "=" not in argument]:
        raise InputError(f"bench takes key=value settings, not {unnamed[0]}")
    own = OWN | {key: value for key, value in given.items() if key in OWN and value}
    overrides = [f"{key}={value}" for key, value in given.items() if key not in OWN and key not in SETTINGS]
    place = place_of(given)
    recipes = []
    for stage in own["stages"].split(","):
        if stage not in STAGES:
            raise InputError(f"stages={stage} is not one of {', '.join(STAGES)}")
        recipe = stage_recipe(own["model"], stage, overrides)
        recipes.append(with_micro_batches(recipe, place.ranks, whole(own, "micro_batches")))
    out = Path(own["out"] or f"runs/bench-{own['model']}")
    for key in ("warmup", "steps"):
        if not whole(own, key):
            raise InputError(f"{key}={own[key]} is not a number above 0")
    work = Work("bench", bench_here, (recipes, own, overrides, out), out / "log", needs="nodes", nodes=place.nodes)
    return start(work, place, lambda rows: _show(rows, out))


def whole(own: dict[str, str], key: str) -> int:
    """A whole number of the settings.

    Raises:
        InputError: it is not.
    """
    number = whole_number(own[key])
    if number is None:
        raise InputError(f"{key}={own[key]} is not a whole number")
    return number


def bench_here(recipes: list[Recipe], own: dict[str, str], overrides: list[str], out: Path) -> list[dict[str, Any]]:
    """The job itself, in every rank: a row a stage, written by the first rank as soon as it is there."""
    ready_model()
    import torch

    from benchmarks.throughput.measure import Settings, measure_training
    from benchmarks.throughput.report import show, write_report
    from benchmarks.throughput.rows import row_line
    from onevision.model.device import Ranks

    ranks = Ranks(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        rendezvous=f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
    )
    rows: list[dict[str, Any]] = []
    for recipe in recipes:
        settings = Settings(
            warmup=int(own["warmup"]),
            steps=int(own["steps"]),
            trace="trace" in own["profile"],
            memory="memory" in own["profile"],
            folder=out / "rows" / recipe.stage,
            data=own["data"],
        )
        rows.append({"name": recipe.stage} | measure_training(recipe, ranks, settings))
        if ranks.rank == 0:
            print(row_line(rows[-1]), flush=True)
            write_report(out, rows)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if ranks.rank == 0:
        if own["peers"] != "none":
            rows += _peers(own, overrides, out, rows)
        show(rows)
    return rows


def _peers(own: dict[str, str], overrides: list[str], out: Path, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our language model alone and the peers, each in a process of its own on this rank's GPU."""
    from benchmarks.throughput.__main__ import OWN as DEFAULTS
    from benchmarks.throughput.__main__ import measure
    from benchmarks.throughput.report import write_report

    asked = DEFAULTS | {
        "model": own["model"],
        "rows": "language,peers",
        "peers": "" if own["peers"] == "all" else own["peers"],
        "micro_batches": own["micro_batches"] if own["micro_batches"] != "0" else DEFAULTS["micro_batches"],
        "warmup": own["warmup"],
        "steps": own["steps"],
    }
    return measure(asked, overrides, out / "rows", lambda rows: write_report(out, [*before, *rows]))


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    print(f"{out / 'throughput.json'}: {len(rows)} rows; plot: {out / 'throughput.png'}")
