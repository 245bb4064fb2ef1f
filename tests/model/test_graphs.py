"""Language in graphs gives the losses and gradients of language without them, bit for bit, pack after pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from onevision.model.device import runtime_context
from onevision.model.graphs import Compute, LanguageGraphs
from onevision.model.onevision import OneVisionModel
from onevision.recipe import ModelRecipe
from tests.model.common import Pack, random_model, random_pack
from tests.model.tape import tape_record

# As many tokens each, in other segments, with other images, or none.
PACKS = [
    random_pack([(9, [(4, 6)]), (14, ()), (5, [(2, 4), (4, 4)])], seed=1),
    random_pack([(40, ())], seed=2),
    random_pack([(1, ()), (3, [(8, 8)]), (10, [(2, 2)]), (9, ())], seed=3),
]


def step(model: OneVisionModel, packs: list[Pack]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses of each token of micro-batches, and their summed gradients, as data parallelism would keep them."""
    for parameter in model.parameters():
        parameter.main_grad.zero_()
    losses = []
    run = Float16Module(model.config, model) if model.config.bf16 else model
    for pack in packs:
        total, loss = run(*pack.inputs, labels=pack.labels)
        if total.requires_grad:
            total.backward()
        losses.append(loss.detach().clone())
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.main_grad += parameter.grad
                parameter.grad = None
    return losses, {name: parameter.main_grad.clone() for name, parameter in model.named_parameters()}


def small_model(recipe: ModelRecipe, dtype: torch.dtype, freeze: list[str]) -> OneVisionModel:
    model = random_model(recipe=recipe, dtype=dtype)
    for name, parameter in model.named_parameters():
        parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
        parameter.grad_added_to_main_grad = False
        parameter.requires_grad_(name.split(".")[0] not in freeze)
    return model.train()


@pytest.mark.parametrize("freeze", [[], ["vision", "language"]])
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_change_no_bit(device: torch.device, dtype: torch.dtype, recompute: str, freeze: list[str]) -> None:
    assert len({pack.tokens.numel() for pack in PACKS}) == 1
    recipe = ModelRecipe(recompute=recompute)
    eager, model = small_model(recipe, dtype, freeze), small_model(recipe, dtype, freeze)
    told: Counter[str] = Counter()
    names = {parameter: name for name, parameter in model.named_parameters()}
    starts = []

    def record(compute: Compute) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        results, start = tape_record(compute)
        return results, lambda: (starts.append(1), start())[1]

    graphs = LanguageGraphs(model.language.decoder, record, lambda parameter: told.update([names[parameter]]))
    with runtime_context(torch.device("cpu")):
        for packs in (PACKS[:1], PACKS, PACKS[::-1]):
            graphs.prepare()
            losses, gradients = step(model, packs)
            expected_losses, expected = step(eager, packs)
            for loss, other in zip(losses, expected_losses, strict=True):
                assert loss.isfinite().all() and torch.equal(loss, other)
            for name, gradient in expected.items():
                assert torch.equal(gradient, gradients[name]), name
                assert bool(gradient.any()) == (name.split(".")[0] not in freeze), name
        with torch.no_grad():  # nothing is trained: the layers as they are
            before = len(starts)
            assert torch.equal(step(model, PACKS[:1])[0][0], step(eager, PACKS[:1])[0][0])
    # Three layers make four pieces, each started forward and backward; a pack without an image trains no adapter.
    trained = 6 if not freeze else 4
    assert len(starts) == before == trained * 4 * 2
    layers = {name for name in expected if ".layers." in name and name.startswith("language.")}
    assert told == ({} if freeze else dict.fromkeys(layers, trained))
