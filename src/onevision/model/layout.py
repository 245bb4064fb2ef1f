"""What an architecture asks of a recipe: sizes of the parallel layout, positions, recomputed layers. Needs no torch."""

from __future__ import annotations

from onevision.model.presets import PRESETS, Architecture
from onevision.model.stages import stage_layers
from onevision.recipe import Recipe, layout_problems
from onevision.recipe_training import FP8_ROWS


def training_problems(recipe: Recipe, world_size: int, *, begun: bool = False) -> list[str]:
    """Everything that keeps a recipe from being trained on `world_size` ranks, whatever its data are. A run that has
    `begun` has a checkpoint, and goes on from it in any layout, however its weights were made."""
    architecture = PRESETS[recipe.model.preset]
    problems = layout_problems(recipe, world_size) + architecture_problems(recipe, architecture)
    return problems if begun else problems + start_problems(recipe)


def architecture_problems(recipe: Recipe, architecture: Architecture) -> list[str]:
    """Values of a recipe that do not fit the model's sizes."""
    vision, language = architecture.vision, architecture.language
    parallel, problems = recipe.parallel, []
    divided = [
        ("tensor", "attention heads of language", language.num_attention_heads),
        ("tensor", "query groups of language", language.num_query_groups),
        ("tensor", "words of the vocabulary", language.vocab_size),
    ]
    if not parallel.split_vision:
        divided.append(("tensor", "attention heads of vision", vision.num_attention_heads))
    for name, what, count in divided:
        size = getattr(parallel, name)
        if count % size:
            problems.append(
                f"parallel.{name}={size} does not divide the {count} {what} of the {architecture.name} model: "
                f"set it to one of {_divisors(count)}"
            )
    if recipe.data.sequence_length > language.max_position_embeddings:
        problems.append(
            f"data.sequence_length={recipe.data.sequence_length} is above the {architecture.name} model's "
            f"{language.max_position_embeddings} positions: lower it and pack again"
        )
    problems += _pipeline_problems(recipe, architecture) + _token_problems(recipe)
    layers = recipe.model.recompute_layers
    parts = stage_layers(recipe, architecture)
    if recipe.model.recompute == "full" and any(count % layers for count in (vision.num_layers, *parts)):
        problems.append(
            f"model.recompute_layers={layers} does not divide the layers of the {architecture.name} model "
            f"({vision.num_layers} in vision, {' + '.join(map(str, parts))} in language): set it to 1"
        )
    kept = recipe.train.fp8_bf16_layers
    fewest = min(vision.num_layers, language.num_layers)
    if 2 * kept > fewest:
        problems.append(
            f"train.fp8_bf16_layers={kept} at either end are more than the {fewest} layers of a transformer of the "
            f"{architecture.name} model: set it to at most {fewest // 2}"
        )
    return problems


def start_problems(recipe: Recipe) -> list[str]:
    """A part of a model cannot be drawn as in the whole model: the random numbers before it are not drawn."""
    parallel = recipe.parallel
    if parallel.tensor * parallel.pipeline > 1 and not recipe.train.init_from:
        return [
            f"parallel.tensor={parallel.tensor}, parallel.pipeline={parallel.pipeline}: train.init_from is empty, and "
            "weights are drawn for a whole model only: make a stage-0 checkpoint with `make init` or `make import` and "
            "name its run"
        ]
    return []


def _pipeline_problems(recipe: Recipe, architecture: Architecture) -> list[str]:
    parallel, layers = recipe.parallel, architecture.language.num_layers
    parts = parallel.pipeline * parallel.virtual_pipeline
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        return [f"parallel.virtual_pipeline={parallel.virtual_pipeline} needs parallel.pipeline above 1: set it to 1"]
    if parts > layers:
        return [
            f"parallel.pipeline={parallel.pipeline} x parallel.virtual_pipeline={parallel.virtual_pipeline} are more "
            f"parts than the {layers} layers of language of the {architecture.name} model: lower one of them"
        ]
    given = parallel.stage_layers
    if given and (len(given) != parts or sum(given) != layers or min(given) < 1):
        return [
            f"parallel.stage_layers={given}: give {parts} numbers of at least 1 whose sum is the {layers} layers of "
            f"language of the {architecture.name} model, or none"
        ]
    return []


def _token_problems(recipe: Recipe) -> list[str]:
    parallel, problems = recipe.parallel, []
    shares = (2 * parallel.context if parallel.context > 1 else 1) * (parallel.tensor if parallel.sequence else 1)
    if shares > 1 and recipe.train.precision == "fp8":
        shares *= FP8_ROWS
    tokens = recipe.data.sequence_length * recipe.train.micro_batch_size
    if tokens % shares:
        problems.append(
            f"data.sequence_length={recipe.data.sequence_length} x train.micro_batch_size="
            f"{recipe.train.micro_batch_size} is not a multiple of {shares}, among which parallel.context="
            f"{parallel.context} and parallel.sequence={str(parallel.sequence).lower()} share the tokens: change one, "
            "and pack again if it is the length"
        )
    if parallel.tensor == 1:
        problems += [
            f"parallel.{name}=true is about tensor-parallel ranks, and parallel.tensor is 1: set it to false"
            for name in ("sequence", "split_vision")
            if getattr(parallel, name)
        ]
    return problems


def _divisors(count: int) -> str:
    return ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
