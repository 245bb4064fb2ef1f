"""Operations of the mean pack against the formulas that count real steps."""

from __future__ import annotations

import pytest
import torch

from onevision.model.context import image_share, local_rows
from onevision.model.presets import PRESETS
from onevision.model.stages import StagePart
from onevision.planning.work import Packs, image_copies, memory_bytes, pack_work, stage_parameters
from onevision.recipe import ModelRecipe, ParallelRecipe
from onevision.training.flops import Work, recompute_flops, step_flops
from onevision.training.memory import parameter_counts

TINY = PRESETS["tiny"]
SAMPLES = Work([40] * 3, [64] * 3)
PADDED = Work([40] * 3 + [8], [64] * 3)
PACKS = Packs(length=128, samples=3, sample_tokens=40, sample_patches=64)
ONE = ParallelRecipe()


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("freeze", [[], ["vision"], ["vision", "language"], ["language"], ["adapter"]])
def test_a_pack_takes_what_its_samples_and_padding_take(recompute: str, freeze: list[str]) -> None:
    model = ModelRecipe(preset="tiny", recompute=recompute, freeze=freeze)
    work = pack_work(TINY, PACKS, model)
    given = step_flops(TINY, PADDED, freeze) + recompute_flops(TINY, PADDED, model)
    assert sum(work.linear.values()) + sum(work.attention.values()) == pytest.approx(given, rel=1e-12)
    assert work.model == pytest.approx(step_flops(TINY, SAMPLES, freeze), rel=1e-12)
    layers = 128 * (128 + 2 * 64) + 128 * 128 + 3 * 128 * 384  # weights of a layer
    passes = 2 + ("language" not in freeze) + (recompute == "full")
    assert work.linear["language"] == pytest.approx(2 * 128 * 3 * layers * passes, rel=1e-12)


def test_stages_share_all_parameters() -> None:
    architecture, model = PRESETS["8b"], ModelRecipe(preset="8b", freeze=["vision"])
    stages = [StagePart(9, index == 0, index == 3) for index in range(4)]
    found = [stage_parameters(architecture, model, stage, ONE) for stage in stages]
    counts = parameter_counts(architecture)
    assert sum(every for every, _ in found) == sum(counts.values())
    assert sum(trained for _, trained in found) == counts["adapter"] + counts["language"]
    for split in (False, True):
        parallel = ParallelRecipe(tensor=4, split_vision=split)
        held = sum(stage_parameters(architecture, model, stage, parallel)[0] for stage in stages)
        own = (counts["vision"] + counts["adapter"]) / (1 if split else 4)
        assert held == pytest.approx(own + counts["language"] / 4)


def test_element_wise_bytes_by_hand() -> None:
    whole = StagePart(3, first=True, last=True)
    found = memory_bytes(TINY, PACKS, ModelRecipe(preset="tiny", recompute="full"), whole, ONE)
    assert found["language"] == 128 * 2 * (9 * 128 + 2 * (128 + 64) + 3 * 384) * 3 * 4
    assert found["vision"] == 3 * 65 * 2 * (15 * 128 + 2 * 512) * 3 * 4
    assert found["loss"] == 128 * 1024 * 20
    first = StagePart(3, first=True, last=False)
    frozen = memory_bytes(TINY, PACKS, ModelRecipe(preset="tiny", freeze=["vision"]), first, ONE)
    assert frozen["vision"] == found["vision"] / 4  # forward alone
    assert frozen["loss"] == 0
    for split, row in ((False, 9 * 128 + (6 * 128 + 2 * 512) / 2), (True, (15 * 128 + 2 * 512) / 2)):
        parallel = ParallelRecipe(tensor=2, sequence=True, split_vision=split)
        shared = memory_bytes(TINY, PACKS, ModelRecipe(preset="tiny", recompute="full"), whole, parallel)
        assert shared["language"] == found["language"] / 2
        assert shared["vision"] == 3 * 65 * 2 * row * 3 * 4


@pytest.mark.parametrize("context", [2, 4])
def test_images_at_cuts_are_computed_twice(context: int) -> None:
    """Against packs of samples of 96 tokens, 64 of an image, that begin at any token of the pack."""
    tokens, sample, image = 1024, 96, 64
    computed = images = 0
    for shift in range(sample):
        starts = range(shift, tokens - sample + 1, sample)
        slots = torch.cat([torch.arange(start, start + image) for start in starts])
        grids = torch.tensor([[1, 16, 16]] * len(starts))
        images += len(starts)
        for rank in range(context):
            computed += len(image_share(grids, slots, local_rows(tokens, rank, context)).grid_thw)
    packs = Packs(length=tokens, samples=tokens / sample, sample_tokens=sample, sample_patches=4 * image)
    assert image_copies(packs, 1, context) == pytest.approx(computed / images, rel=0.03)  # no sample is cut off
    assert image_copies(packs, 1, 1) == 1
    assert image_copies(packs, 2, context) < image_copies(packs, 1, context)
