"""The performance model: memory and step time of every layout, before a GPU hour is spent."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.arguments import parse
from jobs.numbers import whole
from jobs.place import SETTINGS
from onevision.errors import InputError
from onevision.files import write_json
from onevision.planning.hardware import GPUS, calibrated, find_gpu, with_figures
from onevision.planning.packs import mean_of
from onevision.planning.plan import make_plan, plan_dict
from onevision.planning.published import SAMPLE_PATCHES, SAMPLE_TOKENS, check
from onevision.planning.text import print_plan
from onevision.planning.work import Packs
from onevision.recipe import load_recipe

_MEAN = ("sample_tokens", "sample_patches", "pack_samples")
_OWN = ("gpus", "gpu", "json", "calibration", "rows", "packs", *_MEAN)
_BATCH = "train.global_batch_size"
_MOST_GPUS = 1 << 16  # every layout is looked at, and seconds are enough for so many


def run(arguments: list[str]) -> int:
    """python -m jobs plan RECIPE.yaml [gpus=128] [gpu=a800] [key=value ...]

    Predicts memory and step time of every layout of TP, PP, VP, CP, micro-batch and recompute, ranks those that fit,
    says which assumption matters most, and checks the model against the published run. It runs here, at once, without a
    GPU.

      gpus=128, gpu=a800 (a100, h100, h200)    what the plan is for
      calibration=FILE                         measured figures instead of assumed ones: planning/hardware.py
      gpu.gemm=0.65, gpu.network=200, …        one figure, by its name in planning/hardware.py
      sample_tokens=753, sample_patches=2259   the mean sample
      pack_samples=10.9                        samples a pack; else packs are full
      packs=data/packs                         the mean of these packs instead of the mean sample
      rows=15, json=FILE                       rows of the table; all of it as JSON
    """
    path, overrides, own = parse(arguments, "plan", "recipe file", _OWN)
    placed = next((name for name in SETTINGS if name in own), "")
    if placed:
        raise InputError(f"a plan runs here and at once, without {placed}={own[placed]}: say gpus=N gpu=NAME")
    gpus, rows = _whole(own, "gpus", 128), _whole(own, "rows", 15)
    if gpus > _MOST_GPUS:
        raise InputError(f"gpus={gpus} is above {_MOST_GPUS}, the most that a plan is for")
    default = find_gpu(own.get("gpu", "a800"))
    gpu = calibrated(default, Path(own["calibration"])) if own.get("calibration") else default
    figures = dict(one.removeprefix("gpu.").split("=", 1) for one in overrides if one.startswith("gpu."))
    gpu = with_figures(gpu, {name: _number(figures, name) for name in figures}, "given as gpu.NAME")
    overrides = [one for one in overrides if not one.startswith("gpu.")]
    recipe = load_recipe(path, overrides)
    if recipe.train.global_batch_size < gpus and not any(one.startswith(f"{_BATCH}=") for one in overrides):
        print(f"{_BATCH}={recipe.train.global_batch_size} is below {gpus} GPUs: planned with {gpus}", flush=True)
        recipe = replace(recipe, train=replace(recipe.train, global_batch_size=gpus))
    packs = _packs(own, recipe.data.sequence_length)
    plan = make_plan(recipe, gpus, gpu, packs)
    found = check(gpu if gpu.name == "a800" else GPUS["a800"])
    if own.get("json"):
        _write(Path(own["json"]), plan_dict(plan, found))
    print_plan(plan, found, Console(highlight=False), rows)
    return 0


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        write_json(path, values)
    except OSError as error:
        raise InputError(f"json={path} cannot be written: {error.strerror}; name a file in a folder of yours") from None


def _packs(own: dict[str, str], length: int) -> Packs:
    if own.get("packs"):
        both = next((name for name in _MEAN if name in own), "")
        if both:
            raise InputError(f"packs={own['packs']} say what {both}={own[both]} is: give one of them")
        return mean_of(Path(own["packs"]), length)
    tokens = _positive(own, "sample_tokens", SAMPLE_TOKENS)
    patches = _positive(own, "sample_patches", SAMPLE_PATCHES * tokens / SAMPLE_TOKENS)
    return Packs(length, _positive(own, "pack_samples", length / tokens), tokens, patches)


def _whole(own: dict[str, str], key: str, default: int) -> int:
    number = whole(own.get(key) or str(default))
    if not number:
        raise InputError(f"{key}={own[key]} is not a whole number above 0")
    return number


def _number(own: dict[str, str], key: str) -> float:
    try:
        return float(own[key])
    except ValueError:
        raise InputError(f"{key}={own[key]} is not a number") from None


def _positive(own: dict[str, str], key: str, default: float) -> float:
    value = _number(own, key) if own.get(key) else default
    if not 0 < value < math.inf:
        raise InputError(f"{key}={own[key]} is not a number above 0")
    return value
