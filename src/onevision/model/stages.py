"""Which language layers each part of a pipeline has. Needs no torch.

The first part also has the vision tower and the adapter, the last one the head. What they cost is counted in layers:
a token goes through 2 * parameters operations forward and twice that backward, a patch through vision the same way,
and each of them through a part that is not trained without the product that is its weights' gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from onevision.model.presets import SPATIAL_MERGE_SIZE, Architecture
from onevision.model.sizes import parameters
from onevision.recipe import Recipe

IMAGE_SHARE = 0.6  # of a pack's tokens, as in the published mixture of stage 1.5 (onevision.planning.published)
TARGET_SHARE = 0.25  # of a pack's tokens; the head is computed for no others


@dataclass(frozen=True)
class StagePart:
    """Language layers of a part of the model, whether it has vision and the embedding (first), and the head (last)."""

    layers: int
    first: bool
    last: bool


def stage_parts(recipe: Recipe, architecture: Architecture) -> list[list[StagePart]]:
    """The parts of each stage of the pipeline, in the order of the layers."""
    layers, pipeline = stage_layers(recipe, architecture), recipe.parallel.pipeline
    parts = [StagePart(count, place == 0, place == len(layers) - 1) for place, count in enumerate(layers)]
    return [parts[stage::pipeline] for stage in range(pipeline)]


def stage_layers(recipe: Recipe, architecture: Architecture) -> list[int]:
    """Language layers of each of the pipeline's parts, in the order of the layers: `parallel.stage_layers`, or what
    makes the dearest part cheapest, every part having one layer at least.

    Part n belongs to stage n % pipeline.
    """
    parallel = recipe.parallel
    if parallel.stage_layers:
        return list(parallel.stage_layers)
    parts = parallel.pipeline * parallel.virtual_pipeline
    if parts == 1:
        return [architecture.language.num_layers]
    first, last = ends_in_layers(architecture, recipe.model.freeze)
    extra = [0.0] * parts
    extra[0] += first
    extra[-1] += last
    layers = [1] * parts
    for _ in range(architecture.language.num_layers - parts):
        # Equal loads: the later part, whose activations wait for a shorter time.
        cheapest = min(range(parts), key=lambda part: (extra[part] + layers[part], -part))
        layers[cheapest] += 1
    return layers


def ends_in_layers(architecture: Architecture, freeze: list[str]) -> tuple[float, float]:
    """What vision tower and adapter, and what the head cost, in language layers."""
    count = parameters(architecture)
    # Products: forward, gradient of the input, gradient of the weight.
    language = 2 if "language" in freeze else 3
    vision = 1 if "vision" in freeze else 3
    adapter = 1 + ("adapter" not in freeze) + ("vision" not in freeze)
    patches = IMAGE_SHARE * SPATIAL_MERGE_SIZE**2
    layer = language * count["layer"]
    images = vision * count["vision"] * patches + adapter * count["adapter"] * IMAGE_SHARE
    return images / layer, language * count["head"] * TARGET_SHARE / layer
