"""Language in graphs gives the losses and gradients of language without them, bit for bit, pack after pack.

With PyTorch's modules on the CPU, and with the kernels of a GPU: there as CUDA graphs, or interpreted on the CPU by
TRITON_INTERPRET=1 python -m pytest tests/model/test_graphs.py      (needs triton==3.6.0 and numpy<2.3)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from onevision.model.configs import language_config
from onevision.model.device import runtime_context
from onevision.model.graphs import Compute, LanguageGraphs, Record, cuda_record
from onevision.model.onevision import OneVisionModel
from onevision.model.specs import TORCH, Modules, backend_modules
from onevision.recipe import ModelRecipe
from tests.model.common import SMALL, Pack, random_pack, randomise
from tests.model.tape import tape_record

# As many tokens each, in other segments, with other images, or none.
PACKS = [
    random_pack([(9, [(4, 6)]), (14, ()), (5, [(2, 4), (4, 4)])], seed=1),
    random_pack([(40, ())], seed=2),
    random_pack([(1, ()), (3, [(8, 8)]), (10, [(2, 2)]), (9, ())], seed=3),
]


def small_model(
    recipe: ModelRecipe, dtype: torch.dtype, freeze: list[str], modules: Modules, device: torch.device
) -> OneVisionModel:
    with runtime_context(torch.device("cpu")):
        config = language_config(SMALL, recipe, dtype, fused=device.type == "cuda")
        model = randomise(OneVisionModel(SMALL, config, modules)).to(device)
    for name, parameter in model.named_parameters():
        parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
        parameter.requires_grad_(name.split(".")[0] not in freeze)
    return model.train()


def step(model: OneVisionModel, packs: list[Pack], device: torch.device) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses of each token of micro-batches, and their summed gradients, as data parallelism would keep them."""
    for parameter in model.parameters():
        parameter.main_grad.zero_()
        parameter.grad_added_to_main_grad = False
    losses = []
    run = Float16Module(model.config, model) if model.config.bf16 else model
    for pack in packs:
        there = {name: getattr(pack, name).to(device) for name in ("tokens", "labels", "position_ids", "patches")}
        total, loss = run(*pack.with_values(**there).inputs, labels=there["labels"])
        if total.requires_grad:
            total.backward()
        losses.append(loss.detach().clone())
        for parameter in model.parameters():
            if parameter.grad is not None and not parameter.grad_added_to_main_grad:
                parameter.main_grad += parameter.grad
            parameter.grad = None
    return losses, {name: parameter.main_grad.clone() for name, parameter in model.named_parameters()}


def check(eager: OneVisionModel, model: OneVisionModel, record: Record, device: torch.device) -> None:
    """Three steps of a model with graphs and of its like without."""
    assert len({pack.tokens.numel() for pack in PACKS}) == 1
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    names = {parameter: name for name, parameter in model.named_parameters()}
    told: Counter[str] = Counter()
    starts = []

    def counted(compute: Compute) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        results, start = record(compute)
        return results, lambda: (starts.append(1), start())[1]

    graphs = LanguageGraphs(model.language.decoder, counted, lambda parameter: told.update([names[parameter]]))
    with runtime_context(device):
        for packs in (PACKS[:1], PACKS, PACKS[::-1]):
            graphs.prepare()
            losses, gradients = step(model, packs, device)
            expected_losses, expected = step(eager, packs, device)
            for loss, other in zip(losses, expected_losses, strict=True):
                assert loss.isfinite().all() and torch.equal(loss, other)
            for name, gradient in expected.items():
                assert torch.equal(gradient, gradients[name]), name
                assert bool(gradient.any()) == (name not in frozen), name
        with torch.no_grad():  # nothing is trained: the layers as they are
            before = len(starts)
            assert torch.equal(step(model, PACKS[:1], device)[0][0], step(eager, PACKS[:1], device)[0][0])
    # Three layers make four pieces, each started forward and backward; a pack without an image trains no adapter.
    trained = 4 if frozen else 6
    assert len(starts) == before == trained * 4 * 2
    layers = {name for name in expected if ".layers." in name and name.startswith("language.")}
    assert told == ({} if frozen else dict.fromkeys(layers, trained))


@pytest.mark.parametrize("freeze", [[], ["vision", "language"]])
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_change_no_bit(device: torch.device, dtype: torch.dtype, recompute: str, freeze: list[str]) -> None:
    cpu = torch.device("cpu")
    eager, model = (small_model(ModelRecipe(recompute=recompute), dtype, freeze, TORCH, cpu) for _ in range(2))
    check(eager, model, tape_record, cpu)


@pytest.mark.gpu(interpreted=True)
@pytest.mark.parametrize("freeze", [[], ["vision", "language"]])
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_the_kernels_of_a_gpu(
    request: pytest.FixtureRequest, device: torch.device, dtype: torch.dtype, recompute: str, freeze: list[str]
) -> None:
    if device.type == "cuda":
        request.getfixturevalue("ops")
    recipe = ModelRecipe(recompute=recompute, recompute_modules=["activation"])
    modules = fused_modules(recipe) if device.type == "cpu" else backend_modules(device, "torch", again(recipe))
    eager, model = (small_model(recipe, dtype, freeze, modules, device) for _ in range(2))
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # attention's backward pass on a GPU
    try:
        check(eager, model, cuda_record(device) if device.type == "cuda" else tape_record, device)
    finally:
        torch.use_deterministic_algorithms(deterministic)


def again(recipe: ModelRecipe) -> list[str]:
    return recipe.recompute_modules if recipe.recompute == "selective" else []


def fused_modules(recipe: ModelRecipe) -> Modules:
    """The modules of a GPU without its ops."""
    from onevision.model import fused

    return replace(
        TORCH,
        norm=fused.FusedNorm,
        mlp=fused.FrugalMLP if again(recipe) else fused.FusedMLP,
        bias_add=fused.fused_bias_add,
        fork_norm=fused.fused_fork_norm,
        add_norm=fused.fused_add_norm,
        attention_inputs=fused.fused_attention_inputs,
        inputs_add_bias=True,
    )
