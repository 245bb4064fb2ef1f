"""A training run on hardware that errs: a hidden value changes while the model has certain packs before it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from onevision.data.loader import PackLoader
from onevision.fingerprint import bytes_digest
from onevision.model.device import Ranks
from onevision.model.onevision import OneVisionModel
from onevision.recipe import Recipe
from onevision.training import loop
from onevision.training.inputs import open_inputs

SPIKE = 3e4  # moves the logits of one target by some hundreds


@dataclass(frozen=True)
class Fault:
    """The first value of the first target row behind the last layer becomes one of `values`, in turn, when one of
    `packs` is computed, the first `times` times for each; with `backward` it is the gradient of that value."""

    packs: Collection[str]  # digests of their tokens
    times: int = 1_000
    backward: bool = False
    values: tuple[float, ...] = (math.nan,)


def packs_of_step(recipe: Recipe, step: int) -> list[str]:
    """Digests of the tokens of the packs of a step, each a micro-batch; steps count from 1."""
    inputs = open_inputs(recipe)
    train = recipe.train
    loader = PackLoader(
        inputs.sources,
        inputs.tokenizer,
        replace(recipe.data, workers=0),
        seed=recipe.seed,
        global_batch_size=train.global_batch_size,
        micro_batch_size=1,
    )
    return [bytes_digest(batch.tokens.numpy().tobytes()) for batch in loader.batches(step - 1)]


def train_with(fault: Fault, recipe: Recipe, ranks: Ranks | None = None) -> None:
    """Train in this process, which the test has forked."""
    build = loop.build_parts

    def build_erring(*args: Any, **kwargs: Any) -> list[OneVisionModel]:
        parts = build(*args, **kwargs)
        for part in parts:
            if part.part.last:
                attach(fault, part)
        return parts

    loop.build_parts = build_erring
    loop.train(recipe, ranks)


def attach(fault: Fault, model: OneVisionModel) -> None:
    seen: Counter[str] = Counter()
    row: list[int] = []
    turns = cycle(fault.values)

    def note(module: Any, args: Any, kwargs: Any) -> None:
        digest = bytes_digest(args[0].numpy().tobytes())
        row.clear()
        if digest in fault.packs and seen[digest] < fault.times:
            seen[digest] += 1
            row.append(int(kwargs["target_rows"][0]))

    def err(module: Any, args: Any, output: torch.Tensor) -> None:
        if row and fault.backward:
            at = row[0]
            output.register_hook(lambda gradient: changed(gradient, at))
        elif row:
            changed(output.detach(), row[0])

    def changed(values: torch.Tensor, at: int) -> torch.Tensor:
        values[at].view(-1)[0] = next(turns)
        return values

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.language.decoder.register_forward_hook(err)


def digests(run: str | Path, step: int) -> dict[str, str]:
    """Digests of the files with the weights and moments of a checkpoint."""
    folder = Path(run) / "checkpoints" / f"step_{step:08d}"
    return {path.name: bytes_digest(path.read_bytes()) for path in folder.glob("*.distcp")}
