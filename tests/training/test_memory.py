"""The memory formulas against what autograd really keeps, against published sizes and against a real checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onevision.model.configs import language_config
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.onevision import OneVisionModel, freeze
from onevision.model.presets import PRESETS
from onevision.recipe import ModelRecipe, Recipe, recipe_from
from onevision.training.checkpoint_files import step_folder
from onevision.training.loop import train
from onevision.training.memory import (
    MicroBatch,
    checkpoint_bytes,
    kept_activations,
    memory_estimate,
    parameter_counts,
    trained_parameters,
)

ARCHITECTURE = PRESETS["tiny"]
GRIDS = [[1, 8, 8], [1, 16, 8], [1, 8, 8]]
SEGMENTS = [150, 200, 162]
BATCH = MicroBatch(tokens=sum(SEGMENTS), patches=256, images=len(GRIDS))
FROZEN = [[], ["vision"], ["vision", "language"], ["language"], ["adapter"]]


def kept_bytes(model_recipe: ModelRecipe) -> int:
    """Bytes of the storages that an FP32 forward pass saves for its backward pass, without the parameters'."""
    device = start(Ranks(), 1)
    model = OneVisionModel(ARCHITECTURE, language_config(ARCHITECTURE, model_recipe, torch.float32))
    freeze(model, model_recipe.freeze)
    model.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # holding them keeps an address from being used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    grid_thw = torch.tensor(GRIDS)
    tokens = torch.randint(0, 1000, (BATCH.tokens,))
    bounds = torch.tensor([0, *SEGMENTS]).cumsum(0).to(torch.int32)
    slots = torch.arange(1, 1 + BATCH.patches // 4)
    patches = torch.randn(BATCH.patches, 588)
    with runtime_context(device), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(tokens, torch.arange(len(tokens)), bounds, patches, grid_thw, slots, labels=tokens)
    return sum(storage.nbytes() for storage in storages.values())


def estimated(model_recipe: ModelRecipe) -> float:
    """The same by the formulas, with the gradient of the head."""
    kept = kept_activations(ARCHITECTURE, model_recipe, 4, BATCH)
    language = ARCHITECTURE.language
    head = 4 * language.vocab_size * language.hidden_size * ("language" not in model_recipe.freeze)
    return kept.vision + kept.language + head


def of_the_cpu(model_recipe: ModelRecipe) -> int:
    """What PyTorch's own modules keep and the kernels of a GPU do not, in FP32: the normed values beside the input of
    every RMSNorm whose weight is trained; values sorted by the length of their segment beside those unsorted (v before
    attention, its output after it; in vision also q and k); cosines and sines; SiLU's output, and its factor."""
    language, vision = ARCHITECTURE.language, ARCHITECTURE.vision
    q, k = language.num_attention_heads * language.head_dim, language.num_query_groups * language.head_dim
    trained = "language" not in model_recipe.freeze
    extra = 4 * BATCH.tokens * language.hidden_size * trained  # the last norm
    if model_recipe.recompute == "none":
        layer = (2 * language.hidden_size + q + k) * trained + k + q * trained
        layer += language.head_dim + 2 * language.ffn_hidden_size
        extra += 4 * BATCH.tokens * layer * language.num_layers
        if "vision" not in model_recipe.freeze:
            row = 2 * vision.hidden_size + vision.head_dim
            extra += 4 * (BATCH.patches + BATCH.images) * row * vision.num_layers
    return extra


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("frozen", FROZEN, ids=lambda parts: "+".join(parts) or "all trained")
def test_kept_activations_are_what_autograd_keeps(recompute: str, frozen: list[str]) -> None:
    model = ModelRecipe(preset="tiny", recompute=recompute, freeze=frozen)
    measured = kept_bytes(model)
    assert estimated(model) + of_the_cpu(model) == pytest.approx(measured, rel=0.02)
    assert 0.55 * measured < estimated(model) < measured


@pytest.mark.parametrize("frozen", [[], ["vision"]], ids=["all trained", "vision frozen"])
def test_what_a_recomputed_mlp_does_not_keep(frozen: list[str]) -> None:
    plain = ModelRecipe(preset="tiny", freeze=frozen)
    model = ModelRecipe(preset="tiny", recompute="selective", recompute_modules=["mlp"], freeze=frozen)
    saved = kept_bytes(plain) - kept_bytes(model)
    language = ARCHITECTURE.language
    silu = 4 * BATCH.tokens * 2 * language.ffn_hidden_size * language.num_layers  # of_the_cpu
    assert estimated(plain) - estimated(model) + silu == pytest.approx(saved, rel=0.02)


def test_blocks_of_recomputed_layers() -> None:
    three = ModelRecipe(preset="tiny", recompute="full", recompute_layers=3)
    assert estimated(three) + of_the_cpu(three) == pytest.approx(kept_bytes(three), rel=0.03)
    whole = kept_activations(ARCHITECTURE, ModelRecipe(preset="tiny"), 4, BATCH)
    block = kept_activations(ARCHITECTURE, three, 4, BATCH)
    assert block.language_block == pytest.approx(whole.language, rel=0.05)  # all layers, without what follows them
    assert whole.language_block == whole.vision_block == 0


@pytest.mark.parametrize(("preset", "together"), [("4b", 4_741_610_528), ("8b", 8_527_214_624)])
def test_published_parameter_counts(preset: str, together: int) -> None:
    assert sum(parameter_counts(PRESETS[preset]).values()) == together


def test_parameters_of_the_parts() -> None:
    device = start(Ranks(), 1)
    with runtime_context(device):
        model = OneVisionModel(ARCHITECTURE, language_config(ARCHITECTURE, ModelRecipe(preset="tiny"), torch.float32))
    for part, count in parameter_counts(ARCHITECTURE).items():
        assert sum(parameter.numel() for parameter in getattr(model, part).parameters()) == count


@pytest.mark.parametrize(("precision", "frozen"), [("fp32", []), ("bf16", ["language"])])
def test_a_checkpoint_takes_what_is_said(
    make_recipe: Callable[..., Recipe], precision: str, frozen: list[str]
) -> None:
    recipe = make_recipe(steps=1, precision=precision, model={"preset": "tiny", "freeze": frozen})
    train(recipe)
    written = sum(path.stat().st_size for path in Path(step_folder(recipe.output, 1)).iterdir())
    assert checkpoint_bytes(recipe) == pytest.approx(written, rel=0.03)


def published(**changes: dict[str, object]) -> Recipe:
    return recipe_from({"model": {"preset": "8b"}, "train": {"global_batch_size": 64}, **changes})


def test_8b_by_hand() -> None:
    count = 8_527_214_624
    estimate = memory_estimate(published(), 64)
    assert estimate.moment == "loss"
    assert estimate.parts["weights (BF16)"] == 2 * count
    assert estimate.parts["gradients (FP32)"] == 4 * count
    assert estimate.parts["optimizer state, 1/64 of it"] == 12 * count / 64
    tokens = 8192
    layer = 2 * (2 * 4096 + 4 * 4096 + 3 * 1024 + 2 * 12288) + 4 * 32 + 2 * (2 * 4096 + 12288)
    assert estimate.parts["activations of language"] == tokens * (36 * layer + 2 * 2 * 4096)
    assert estimate.parts["logits, loss, the head's gradient"] == 2048 * 151936 * 4 + 4 * 151936 * 4096
    assert estimate.total == pytest.approx(sum(estimate.parts.values()))


def test_what_is_frozen_needs_neither_gradients_nor_state() -> None:
    recipe = published(model={"preset": "8b", "freeze": ["vision", "language"]})
    adapter = parameter_counts(PRESETS["8b"])["adapter"]
    assert trained_parameters(recipe) == adapter
    parts = memory_estimate(recipe, 64).parts
    assert parts["gradients (FP32)"] == 4 * adapter
    assert parts["activations of language"] > 0  # the gradient goes through to the adapter
    assert parts["activations of vision and adapter"] < 1e9


@pytest.mark.parametrize(
    "smaller",
    [
        {"model": {"preset": "8b", "recompute": "full"}},
        {"model": {"preset": "4b"}},
        {"data": {"sequence_length": 4096}},
        {"parallel": {"tensor": 2}},
        {"model": {"preset": "8b", "recompute": "full"}, "parallel": {"pipeline": 4}},
    ],
)
def test_what_the_knobs_are_for(smaller: dict[str, dict[str, object]]) -> None:
    assert memory_estimate(published(**smaller), 64).total < memory_estimate(published(), 64).total


def test_the_fullest_stage_counts() -> None:
    # Vision stands on the first stage, which keeps the activations of four micro-batches; the loss on the last.
    one = memory_estimate(published(), 64).parts["activations of vision and adapter"]
    four = memory_estimate(published(parallel={"pipeline": 4}), 64).parts
    assert four["activations of vision and adapter"] == 4 * one
    assert "logits, loss, the head's gradient" not in four


def test_fewer_patches_need_less() -> None:
    assert memory_estimate(published(), 64, pack_patches=8000).total < memory_estimate(published(), 64).total
    assert memory_estimate(published(), 64, pack_patches=4 * 8192) == memory_estimate(published(), 64)


def test_the_table_adds_up() -> None:
    lines = memory_estimate(published(), 64).lines()
    values = [float(line.split()[-2]) for line in lines[1:]]
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.05)
    assert len({len(line) for line in lines[1:]}) == 1
