"""A small corpus with a reject, and its packs, for the tests of the report on packs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onevision.corpus.build import build_corpus
from onevision.packing.build import build_packs
from onevision.recipe import DataRecipe, Recipe, TrainRecipe, save_recipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records

BATCH = 8  # the recipe's global batch size


def build_packed(
    root: Path,
    images: Sequence[int] = (1, 0, 2, 1, 3),
    samples: int = 120,
    damaged: int = 1,
    **pack: int,
) -> Recipe:
    """Corpus and packs below `root` by the recipe file `root/recipe.yaml`. Sample i has images[i % len(images)] images;
    those of the first `damaged` samples cannot be read. `pack` are settings of the pack step.
    """
    tiny_tokenizer(root / "tokenizer")
    records = [sample_record(i, images[i % len(images)]) for i in range(samples)]
    source = write_records(root / "source", records)
    for number in range(damaged):
        (source / "images" / f"{number:05d}_0.png").write_bytes(b"no image")
    data = DataRecipe(
        source=str(source),
        corpus=str(root / "corpus"),
        packs=str(root / "packs"),
        tokenizer=str(root / "tokenizer"),
        max_pixels=50176,
        reject_threshold=0.5,
        **{"sequence_length": 320, **pack},
    )
    recipe = Recipe(name="packs", data=data, train=TrainRecipe(global_batch_size=BATCH))
    save_recipe(recipe, root / "recipe.yaml")
    build_corpus(data, root / "corpus", report=lambda line: None)
    build_packs(data, root / "packs", report=lambda line: None)
    return recipe
