"""The plan: every layout judged, those that fit ranked by time, the others counted with their reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from onevision.errors import InputError
from onevision.model.layout import architecture_problems
from onevision.model.presets import PRESETS
from onevision.planning import published
from onevision.planning.hardware import Gpu
from onevision.planning.layouts import Layout, laid_out, layouts, refusal
from onevision.planning.model import Prediction, predict
from onevision.planning.sensitivity import Sensitivity, sensitivities
from onevision.planning.work import Packs
from onevision.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What was found for a recipe on `gpus` GPUs: predictions, the fastest first, and why the other layouts are out."""

    recipe: Recipe
    gpus: int
    gpu: Gpu
    packs: Packs
    ranked: list[Prediction]
    refused: dict[str, int]  # reason: layouts
    sensitivities: list[Sensitivity]  # of the first layout

    def days(self, prediction: Prediction) -> float:
        """Days for as many samples as the published stage 1.5 read."""
        steps = published.SAMPLES / self.packs.samples / self.recipe.train.global_batch_size
        return steps * prediction.seconds / 86400


def make_plan(recipe: Recipe, gpus: int, gpu: Gpu, packs: Packs) -> Plan:
    """Predict all layouts of the recipe's global batch on that many GPUs.

    Raises:
        InputError: the recipe cannot be trained in any layout, or none fits into the GPU.
    """
    _refuse(recipe, packs)
    refused: Counter[str] = Counter()
    ranked = []
    for layout in layouts(gpus):
        reason = refusal(recipe, layout, gpus)
        if reason:
            refused[reason] += 1
            continue
        prediction = predict(recipe, layout, gpus, gpu, packs)
        if prediction.memory.total > gpu.memory.value * 1e9:
            parts = prediction.memory.parts
            largest = max(parts, key=parts.__getitem__).partition(",")[0]
            refused[f"a GPU would need more than its {gpu.memory.value:g} GB, the largest part {largest}"] += 1
            continue
        ranked.append(prediction)
    if not ranked:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in refused.most_common())
        raise InputError(
            f"no layout of {recipe.model.preset} on gpus={gpus} gpu={gpu.name} with train.global_batch_size="
            f"{recipe.train.global_batch_size} can be: {reasons}"
        )
    ranked.sort(key=lambda prediction: (prediction.seconds, prediction.memory.total))
    best = ranked[0].layout
    found = sensitivities(lambda other, some: predict(recipe, best, gpus, other, some).seconds, gpu, packs)
    return Plan(recipe, gpus, gpu, packs, ranked, dict(refused.most_common()), found)


def _refuse(recipe: Recipe, packs: Packs) -> None:
    if recipe.train.precision != "bf16":
        raise InputError(f"train.precision={recipe.train.precision}: peaks are known for bf16 only: plan with that")
    problems = architecture_problems(laid_out(recipe, Layout()), PRESETS[recipe.model.preset])
    if problems:
        raise InputError("; ".join(problems))
    if packs.fill > 1 + 1e-9 or packs.sample_tokens > packs.length:
        raise InputError(
            f"{packs.samples:g} samples of sample_tokens={packs.sample_tokens:g} do not go into packs of "
            f"data.sequence_length={packs.length}: lower pack_samples or sample_tokens"
        )
    if 4 * packs.sample_tokens < packs.sample_patches:
        raise InputError(
            f"sample_patches={packs.sample_patches:g} are more than 4 for each of sample_tokens={packs.sample_tokens:g}"
        )


def plan_dict(plan: Plan, found: published.Check) -> dict[str, Any]:
    """The plan as plain values, for a JSON file. Seconds, bytes and shares."""
    return {
        "prediction": "every figure is predicted, none measured, unless its source says so",
        "model": plan.recipe.model.preset,
        "gpus": plan.gpus,
        "gpu": plan.gpu.name,
        "global_batch_size": plan.recipe.train.global_batch_size,
        "packs": vars(plan.packs) | {"fill": plan.packs.fill},
        "figures": {name: vars(figure) for name, figure in plan.gpu.figures().items()},
        "layouts": [
            vars(one.layout)
            | {
                "seconds": one.seconds,
                "parts": one.parts,
                "memory": one.memory.parts,
                "memory_moment": one.memory.moment,
                "tokens_per_second_per_gpu": one.tokens_per_gpu,
                "mfu": one.mfu,
                "hfu": one.hfu,
                "days_85m_samples": plan.days(one),
            }
            for one in plan.ranked
        ],
        "refused": plan.refused,
        "sensitivities": [vars(one) | {"effect": one.effect} for one in plan.sensitivities],
        "published": {
            "days": published.DAYS,
            "predicted_days": found.days,
            "error": found.error,
            "within_error": found.reproduced,
            "causes": found.causes,
        },
    }
