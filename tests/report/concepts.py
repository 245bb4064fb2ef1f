"""A small corpus with its vocabulary, concepts and selection, for the tests of the report on concepts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from onevision.concepts.balance.build import build_balance
from onevision.concepts.build import build_concepts
from onevision.concepts.vocabulary import build_vocabulary
from onevision.corpus.build import build_corpus
from onevision.corpus.record import Message, Part, Record
from onevision.recipe import Recipe, recipe_from, save_recipe
from tests.concepts.cases import change
from tests.fixtures import image_bytes, tiny_tokenizer, write_records

NAMES = ["apple", "lion", "castle", "violin", "bicycle", "mountain", "lighthouse", "kettle", "owl", "anchor", "umbra"]
SAMPLES = 70
DRAWN = 24
FOLDERS = {"corpus": "corpus", "vocabulary": "vocabulary", "index": "concepts", "balanced": "balanced"}


def made_record(i: int) -> Record:
    """The i-th record: low names are frequent, every seventh caption names nothing and has no image."""
    names = [NAMES[i * i % 11 % 5], NAMES[i % 10]]
    text = f"{'An' if names[0] == 'apple' else 'A'} {names[0]} beside a {names[1]}" if i % 7 else f"Number {i}"
    images = (image_bytes(40 + i, 50, seed=i),) if i % 7 else ()
    question = (*[Part("image")] * len(images), Part("text", "What does it show?"))
    return Record(
        f"sample-{i:02d}",
        images,
        (Message("user", question), Message("assistant", (Part("text", text),))),
        ("things", "<b>places</b>")[i % 2],
        "en" if i % 4 else "zh",
        f"set-{i % 3}",
        "CC0-1.0",
    )


def make_balanced(root: Path, **concepts: object) -> Recipe:
    """All steps below `root`, by the recipe file `root/recipe.yaml`; `concepts` are settings of them."""
    root.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(root / "tokenizer")
    (root / "names.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    data = {
        "source": str(write_records(root / "source", [made_record(i) for i in range(SAMPLES)])),
        "tokenizer": str(root / "tokenizer"),
        "shard_samples": 20,
        "reject_threshold": 0.5,
        "corpus": str(root / "corpus"),
        "balanced": str(root / "balanced"),
    }
    folders = {"vocabulary": str(root / "vocabulary"), "index": str(root / "concepts")}
    settings = {"lists": [str(root / "names.txt")], "samples": DRAWN, "top_k": 3, **folders, **concepts}
    recipe = recipe_from({"data": data, "concepts": settings})
    save_recipe(recipe, root / "recipe.yaml")
    build_corpus(recipe.data, recipe.data.corpus, report=str)
    build_vocabulary(recipe, recipe.concepts.vocabulary, report=str)
    build_concepts(recipe, recipe.concepts.index, report=str)
    build_balance(recipe, recipe.data.balanced, report=str)
    return recipe


def copy_of(recipe: Recipe, root: Path) -> Recipe:
    """A copy of all folders below `root`, to be damaged."""
    shutil.copytree(Path(recipe.data.corpus).parent, root, dirs_exist_ok=True)
    copied = change(recipe, **{key: str(root / name) for key, name in FOLDERS.items()})
    return replace(copied, data=replace(copied.data, tokenizer=str(root / "tokenizer")))
