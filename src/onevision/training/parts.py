"""The model that a recipe describes, or what a rank has of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from megatron.core import parallel_state

from onevision.model.configs import language_config
from onevision.model.onevision import OneVisionModel, Part, freeze
from onevision.model.presets import PRESETS
from onevision.model.specs import backend_modules
from onevision.model.stages import stage_layers
from onevision.model.user_buffers import open_user_buffers
from onevision.recipe import ParallelRecipe, Recipe
from onevision.training.precision import precision_dtype


def build_parts(
    recipe: Recipe, device: torch.device, *, initialize: bool = True, generates: bool = False
) -> list[OneVisionModel]:
    """What this rank has of the preset's model, on `device`, initialised from the recipe's seed, with the recipe's
    parts frozen: one, or with a virtual pipeline `parallel.virtual_pipeline` of them.

    With `initialize=False` the weights are whatever the memory held: for who sets them all. A model that `generates`
    has an attention that remembers keys and values, PyTorch's, whatever the recipe says.
    """
    architecture, parallel = PRESETS[recipe.model.preset], recipe.parallel
    layers = stage_layers(recipe, architecture)
    overlap = recipe.performance.tp_comm_overlap and parallel.tensor > 1  # the whole model on one rank has no messages
    if overlap:
        tokens = recipe.train.micro_batch_size * recipe.data.sequence_length // parallel.context
        open_user_buffers(tokens, architecture.language.hidden_size, parallel.tensor)
    config = language_config(
        architecture,
        recipe.model,
        precision_dtype(recipe.train.precision),
        initialize=initialize,
        fused=device.type == "cuda",
        train=recipe.train,
        parallel=parallel,
        stage_layers=layers,
        overlap=overlap,
    )
    torch.manual_seed(recipe.seed)
    again = recipe.model.recompute_modules if recipe.model.recompute == "selective" else ()
    attention = training_attention(recipe) if not generates else "torch"
    modules = backend_modules(device, recipe.model.backend, again, attention=attention)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    parts = []
    for number in range(parallel.virtual_pipeline):
        place = number * parallel.pipeline + stage
        part = Part(
            first=place == 0,
            last=place == len(layers) - 1,
            layers=layers[place],
            number=number if parallel.virtual_pipeline > 1 else None,
            split_vision=parallel.split_vision,
        )
        model = OneVisionModel(architecture, config, modules, part)
        freeze(model, recipe.model.freeze)
        parts.append(model.to(device))
    return parts


def training_attention(recipe: Recipe) -> str:
    """The `model.attention` that a recipe trains with: where ranks share tokens, PyTorch's stands for auto, as that of
    Transformer Engine wants every sample padded."""
    shared = recipe.parallel.context > 1 and recipe.model.attention == "auto"
    return "torch" if shared else recipe.model.attention


def build_model(
    recipe: Recipe, device: torch.device, *, initialize: bool = True, generates: bool = False
) -> OneVisionModel:
    """The whole model on one rank, whatever layout the recipe trains in; otherwise as `build_parts`."""
    whole = replace(recipe, parallel=ParallelRecipe())
    (model,) = build_parts(whole, device, initialize=initialize, generates=generates)
    return model
