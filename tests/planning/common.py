"""A recipe of stage 1.5, and packs as the published ones."""

from __future__ import annotations

from onevision.planning.work import Packs
from onevision.recipe import Recipe, recipe_from

PACKS = Packs(length=8192, samples=9.0, sample_tokens=750.0, sample_patches=2200.0)


def stage(batch: int = 128, **changes: object) -> Recipe:
    """The 8B model with a global batch of so many packs."""
    return recipe_from({"model": {"preset": "8b"}, "train": {"global_batch_size": batch}, **changes})
