"""What an architecture asks of a recipe: sizes of the parallel layout, positions, recomputed layers. Needs no torch."""

from __future__ import annotations

from onevision.model.presets import PRESETS, Architecture
from onevision.recipe import Recipe, layout_problems


def training_problems(recipe: Recipe, world_size: int) -> list[str]:
    """Everything that keeps a recipe from being trained on `world_size` ranks, whatever its data are."""
    architecture = PRESETS[recipe.model.preset]
    return layout_problems(recipe, world_size) + architecture_problems(recipe, architecture) + missing_parts(recipe)


def architecture_problems(recipe: Recipe, architecture: Architecture) -> list[str]:
    """Values of a recipe that do not fit the model's sizes."""
    vision, language = architecture.vision, architecture.language
    parallel, problems = recipe.parallel, []
    divided = [
        ("tensor", "attention heads of language", language.num_attention_heads),
        ("tensor", "query groups of language", language.num_query_groups),
        ("tensor", "attention heads of vision", vision.num_attention_heads),
        ("pipeline", "layers of language", language.num_layers),
    ]
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
    layers = recipe.model.recompute_layers
    if recipe.model.recompute == "full" and (vision.num_layers % layers or language.num_layers % layers):
        problems.append(
            f"model.recompute_layers={layers} does not divide the layers of the {architecture.name} model "
            f"({vision.num_layers} in vision, {language.num_layers} in language): set it to 1"
        )
    kept = recipe.train.fp8_bf16_layers
    fewest = min(vision.num_layers, language.num_layers)
    if 2 * kept > fewest:
        problems.append(
            f"train.fp8_bf16_layers={kept} at either end are more than the {fewest} layers of a transformer of the "
            f"{architecture.name} model: set it to at most {fewest // 2}"
        )
    return problems


def missing_parts(recipe: Recipe) -> list[str]:
    """What a recipe may name and training cannot do yet; it is refused, never done in another way."""
    problems = []
    if (recipe.parallel.tensor, recipe.parallel.pipeline) != (1, 1):
        problems.append(
            f"parallel.tensor={recipe.parallel.tensor}, parallel.pipeline={recipe.parallel.pipeline}: training with "
            "tensor or pipeline parallelism is not part of this version: set both to 1"
        )
    return problems


def _divisors(count: int) -> str:
    return ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
