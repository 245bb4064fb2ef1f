"""Transformer Engine against PyTorch's modules, and FP8, on a GPU that has both: same losses, same checkpoints.

A step's loss comes out of its forward pass, whose kernels give the same bits every time; those of attention's backward
pass may not. So what goes on from a checkpoint is held to the bit in its first step, and to a tolerance after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
from torch import Tensor

from onevision.data.loader import PackLoader
from onevision.model.backend import FP8_CAPABILITY, transformer_engine_problem
from onevision.model.device import Ranks, start
from onevision.recipe import Recipe
from onevision.training.checkpoint_files import checkpoint_steps, find, step_folder
from onevision.training.history import read_metrics
from onevision.training.inputs import open_inputs
from onevision.training.loop import initialise, train
from onevision.training.parts import build_model
from onevision.training.stepper import Stepper

MakeRecipe = Callable[..., Recipe]
GPU = torch.device("cuda", 0)
TE = "transformer_engine"

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ops")]


@pytest.fixture(autouse=True)
def transformer_engine() -> None:
    """Skip where there is no Transformer Engine."""
    problem = transformer_engine_problem(GPU)
    if problem:
        pytest.skip(problem)


@pytest.fixture
def fp8() -> None:
    """Skip where the GPU has no FP8."""
    if torch.cuda.get_device_capability(GPU) < FP8_CAPABILITY:
        pytest.skip("the GPU has no FP8 units")


def with_backend(recipe: Recipe, backend: str) -> Recipe:
    return replace(recipe, model=replace(recipe.model, backend=backend))


def losses(recipe: Recipe) -> list[float]:
    return [row["loss"] for row in read_metrics(recipe.output)]


def cut(recipe: Recipe, output: Path, step: int) -> Recipe:
    """A copy of a finished run that ended after `step`."""
    shutil.copytree(recipe.output, output)
    (output / "step.json").unlink()
    for later in checkpoint_steps(output):
        if later > step:
            shutil.rmtree(step_folder(output, later))
    return replace(recipe, output=str(output))


def first_step(recipe: Recipe) -> tuple[list[float], dict[str, Tensor]]:
    """Sums of the losses of the first step's micro-batches, and the gradients by their names in a checkpoint."""
    start(Ranks(), recipe.seed)
    inputs = open_inputs(recipe)
    stepper = Stepper(recipe, [build_model(recipe, GPU)], len(inputs.sources.categories))
    loader = PackLoader(
        inputs.sources,
        inputs.tokenizer,
        recipe.data,
        seed=recipe.seed,
        global_batch_size=recipe.train.global_batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        dp_rank=0,
        dp_size=1,
        device=GPU,
    )
    sums = stepper.compute(next(loader.iterate(0, 1)))
    named = {name: parameter.main_grad.clone() for name, parameter in stepper.parts[0].named_parameters()}
    gradients = {
        name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_").replace(
            "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"
        ): value
        for name, value in named.items()
    }
    return [float(entry["by_category"].sum()) for entry in sums], gradients


def test_loss_and_gradients_are_those_of_pytorch(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(precision="bf16")
    loss, gradients = first_step(with_backend(recipe, "torch"))
    loss_te, gradients_te = first_step(with_backend(recipe, TE))
    assert loss_te == pytest.approx(loss, rel=2e-3)
    assert gradients.keys() == gradients_te.keys()
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        if gradient.norm() > 1e-3 * largest:
            assert (gradients_te[name] - gradient).norm() < 0.1 * gradient.norm(), name


@pytest.mark.parametrize("writer", ["torch", TE])
def test_checkpoints_are_exchanged(make_recipe: MakeRecipe, tmp_path: Path, writer: str) -> None:
    reader = TE if writer == "torch" else "torch"
    whole = with_backend(make_recipe("whole", precision="bf16", steps=4), writer)
    train(whole)
    same, other = cut(whole, tmp_path / "same", 2), with_backend(cut(whole, tmp_path / "other", 2), reader)
    train(same), train(other)
    assert losses(same)[2] == losses(whole)[2]
    assert losses(other)[2:] == pytest.approx(losses(whole)[2:], rel=5e-3)
    saved = [load_sharded_metadata(str(find(run.output)[0])) for run in (whole, other)]
    assert saved[0].keys() == saved[1].keys()


@pytest.mark.parametrize("scaling", ["tensorwise", "delayed"])
def test_fp8_is_near_bf16(make_recipe: MakeRecipe, fp8: None, scaling: str) -> None:
    exact = make_recipe("bf16", precision="bf16", steps=8)
    recipe = make_recipe("fp8", precision="fp8", fp8_recipe=scaling, steps=8)
    train(exact), train(recipe)
    assert losses(recipe) != losses(exact)
    assert losses(recipe) == pytest.approx(losses(exact), rel=0.05)


@pytest.mark.parametrize(
    "recompute", [{}, {"recompute": "full"}, {"recompute": "selective", "recompute_modules": ["mlp"]}]
)
@pytest.mark.parametrize("scaling", ["tensorwise", "delayed"])
def test_fp8_goes_on_as_it_was(
    make_recipe: MakeRecipe, fp8: None, tmp_path: Path, scaling: str, recompute: dict[str, Any]
) -> None:
    model = {"preset": "tiny", **recompute}
    whole = make_recipe("whole", precision="fp8", fp8_recipe=scaling, steps=6, model=model)
    train(whole)
    again = cut(whole, tmp_path / "again", 4)
    train(again)
    assert losses(again)[4] == losses(whole)[4]
    assert losses(again)[5:] == pytest.approx(losses(whole)[5:], rel=5e-3)


def test_fp8_goes_on_from_weights_of_pytorch_and_back(
    make_recipe: MakeRecipe, fp8: None, capfd: pytest.CaptureFixture[str]
) -> None:
    stage0 = with_backend(make_recipe("stage0", stage="stage0", precision="bf16"), "torch")
    initialise(stage0)
    delayed = make_recipe("delayed", precision="fp8", fp8_recipe="delayed", steps=2, init_from=stage0.output)
    train(delayed)
    back = with_backend(make_recipe("back", precision="bf16", steps=1, init_from=delayed.output), "torch")
    forth = make_recipe("forth", precision="bf16", steps=1, init_from=delayed.output)
    train(back), train(forth)
    assert losses(back) == pytest.approx(losses(forth), rel=2e-3)


def test_first_and_last_layers_stay_in_bf16(make_recipe: MakeRecipe, fp8: None) -> None:
    whole = make_recipe("all", precision="fp8", steps=2)
    kept = make_recipe("kept", precision="fp8", fp8_bf16_layers=1, steps=2)
    train(whole), train(kept)
    assert losses(kept) != losses(whole)
    assert losses(kept) == pytest.approx(losses(whole), rel=0.05)


def test_moments_in_bf16_go_on_as_they_were(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    optimizer = {"lr": 1e-3, "min_lr": 1e-4, "eps": 1e-8, "state_dtype": "bf16"}
    whole = make_recipe("whole", precision="bf16", steps=4, optimizer=optimizer)
    exact = make_recipe("exact", precision="bf16", steps=4)
    train(whole), train(exact)
    assert losses(whole) == pytest.approx(losses(exact), rel=0.02)
    again = cut(whole, tmp_path / "again", 2)
    train(again)
    assert losses(again)[2] == losses(whole)[2]
