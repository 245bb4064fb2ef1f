"""The check of the model: what it says of the one published run, LLaVA-OneVision-1.5's stage 1.5 on 128 A800.

Published: the 8B model, 85 million samples, 3.7 days on 128 A800 (11.4 thousand GPU hours), 64 billion tokens in packs
of 8,192. The released stage-1.5 script has one micro-batch of one pack a rank, no tensor or pipeline parallelism, the
distributed optimizer without overlap, full recompute of blocks of four layers, and 320,000 packs for 3 million samples.
Not published: patches a sample, the global batch of that run, its network. No figure was fitted to the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onevision.planning.hardware import Gpu
from onevision.planning.layouts import Layout
from onevision.planning.model import Prediction, predict
from onevision.planning.sensitivity import sensitivities
from onevision.planning.work import Packs
from onevision.recipe import DataRecipe, ModelRecipe, Recipe, TrainRecipe

SAMPLES = 85e6
TOKENS = 64e9
GPUS = 128
DAYS = 3.7
SAMPLE_TOKENS = TOKENS / SAMPLES  # 753
IMAGE_SHARE = 0.75  # of the tokens; assumed: a caption has 150 to 250 tokens
SAMPLE_PATCHES = 4 * IMAGE_SHARE * SAMPLE_TOKENS
HFU = 0.45  # what its authors state
LAYOUT = Layout(recompute="full")


@dataclass(frozen=True)
class Range:
    """Something of the run that is not known, from `low` to `high`; the check takes `value`."""

    name: str
    value: float
    low: float
    high: float
    source: str


# 3 million samples in 320,000 packs; "about nine"; 64e9 tokens in packs filled to 0.93, as the paper's packer aims at.
SAMPLES_PER_PACK = Range(
    "samples a pack", 9.4, 9.0, 10.1, "the released script's 3e6 / 320,000; 0.93 full would be 10.1"
)
PACKS_PER_STEP = Range("packs a GPU a step", 1, 1, 4, "the released script's micro-batch; a user's run had 3 to 4")
TOKENS_READ = Range("tokens", TOKENS, 56e9, 64e9, "64e9 published; others count 663 a sample")


@dataclass(frozen=True)
class Check:
    """The prediction of the published run: a step, the mean pack, steps, days, and the relative error of each cause."""

    prediction: Prediction
    packs: Packs
    steps: float
    days: float
    causes: dict[str, float]

    @property
    def error(self) -> float:
        """Relative error of the prediction: the causes, taken as independent."""
        return math.sqrt(sum(effect**2 for effect in self.causes.values()))

    @property
    def reproduced(self) -> bool:
        """Whether the published days lie within the error."""
        return abs(DAYS / self.days - 1) <= self.error


def check(gpu: Gpu) -> Check:
    """Predict the published run on that GPU, which is meant to be the A800."""
    base = _days(gpu)
    causes = {
        f"{one.name} 20 % off": one.effect
        for one in sensitivities(lambda other, packs: _prediction(other, packs, 1).seconds, gpu, _packs())
    }
    for known, low, high in (
        (SAMPLES_PER_PACK, _days(gpu, samples=SAMPLES_PER_PACK.low), _days(gpu, samples=SAMPLES_PER_PACK.high)),
        (PACKS_PER_STEP, _days(gpu, per_step=int(PACKS_PER_STEP.low)), _days(gpu, per_step=int(PACKS_PER_STEP.high))),
        (TOKENS_READ, _days(gpu, tokens=TOKENS_READ.low), _days(gpu, tokens=TOKENS_READ.high)),
    ):
        cause = f"{known.name} {known.low:.3g} to {known.high:.3g} ({known.source})"
        causes[cause] = max(abs(low / base - 1), abs(high / base - 1))
    prediction = _prediction(gpu, _packs(), int(PACKS_PER_STEP.value))
    return Check(prediction, _packs(), _steps(SAMPLES_PER_PACK.value, int(PACKS_PER_STEP.value)), base, causes)


def _packs(samples: float = SAMPLES_PER_PACK.value, tokens: float = TOKENS) -> Packs:
    sample = tokens / SAMPLES
    return Packs(8192, samples, sample, 4 * IMAGE_SHARE * sample)


def _prediction(gpu: Gpu, packs: Packs, per_step: int) -> Prediction:
    recipe = Recipe(
        data=DataRecipe(sequence_length=packs.length, workers=16),
        model=ModelRecipe(preset="8b", recompute="full", recompute_layers=4),
        train=TrainRecipe(global_batch_size=per_step * GPUS),
    )
    return predict(recipe, LAYOUT, GPUS, gpu, packs)


def _steps(samples: float, per_step: int) -> float:
    return SAMPLES / samples / (per_step * GPUS)


def _days(gpu: Gpu, samples: float = SAMPLES_PER_PACK.value, per_step: int = 1, tokens: float = TOKENS) -> float:
    return _steps(samples, per_step) * _prediction(gpu, _packs(samples, tokens), per_step).seconds / 86400
