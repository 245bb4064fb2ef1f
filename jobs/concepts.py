"""The concept jobs: vocabulary -> concepts of every sample -> a balanced selection. Many ranks can share them."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from jobs.arguments import parse
from jobs.cluster import Work
from jobs.data import data_ranks, required, shared_work
from jobs.place import place_of, start
from onevision.concepts.balance.build import build_balance
from onevision.concepts.build import build_concepts
from onevision.concepts.vocabulary import build_vocabulary
from onevision.errors import InputError
from onevision.recipe import Recipe, load_recipe

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
STEPS: dict[str, tuple[Callable[..., Any], str]] = {
    "vocabulary": (build_vocabulary, "concepts.vocabulary"),
    "concepts": (build_concepts, "concepts.index"),
    "balance": (build_balance, "data.balanced"),
}


def run_vocabulary(arguments: list[str]) -> int:
    """python -m jobs vocabulary RECIPE.yaml [ranks=N] [nodes=N] [key=value ...]

    Collects the names of concepts (concepts.wordnet, words, bigrams, titles, lists), embeds them with
    concepts.encoder, and writes vocabulary.h5 and concepts.txt under `concepts.vocabulary`. The result is the same for
    any number of ranks; a run that was interrupted goes on.
    """
    return _run("vocabulary", arguments)


def run_concepts(arguments: list[str]) -> int:
    """python -m jobs concepts RECIPE.yaml [ranks=N] [nodes=N] [key=value ...]

    Embeds every sample of `data.corpus`, finds its `concepts.top_k` nearest concepts (or, with
    concepts.match=substring, those that its caption names), counts them, and writes concepts.h5 under
    `concepts.index`. The result is the same for any number of ranks; a run that was interrupted goes on.
    """
    return _run("concepts", arguments)


def run_balance(arguments: list[str]) -> int:
    """python -m jobs balance RECIPE.yaml [samples=85M] [ranks=N] [nodes=N] [key=value ...]

    Leaves duplicates out, weights samples by the inverse frequency of their concepts, draws `concepts.samples` of them,
    and writes the selection as a corpus over the same shards under `data.balanced`. The result is the same for any
    number of ranks; a run that was interrupted goes on.
    """
    return _run("balance", arguments)


def run_report(arguments: list[str]) -> int:
    """python -m jobs concepts-report RECIPE.yaml [key=value ...]

    Prints what the selection did (coverage before and after, the tail, per source and language, some samples with
    their concepts) and writes it to report.html in the folder `data.balanced`. It runs here, at once.
    """
    from onevision.report.concept_facts import read_concept_facts
    from onevision.report.concept_page import write_page
    from onevision.report.concept_text import print_report

    path, overrides, _ = parse(arguments, "concepts-report", "recipe file", ("ranks", "samples"))
    facts = read_concept_facts(load_recipe(path, overrides))
    print_report(facts, Console(highlight=False))
    print(f"\nopen {write_page(facts)}")
    return 0


def concept_work(name: str, recipe: Recipe, ranks: int = 1, nodes: int = 1) -> Work:
    """The job `name`: vocabulary, concepts or balance.

    Raises:
        InputError: the recipe does not name the folder that it writes.
    """
    build, key = STEPS[name]
    embeds = name != "balance" and recipe.concepts.match == "embedding"
    needs: Literal["ranks", "gpu_ranks"] = "gpu_ranks" if embeds and recipe.concepts.encoder == "clip" else "ranks"
    return shared_work(name, build, recipe, step_folder(name, recipe), ranks, nodes, needs)


def step_folder(name: str, recipe: Recipe) -> Path:
    """The folder that the step `name` writes.

    Raises:
        InputError: the recipe does not name it.
    """
    key = STEPS[name][1]
    section, _, entry = key.partition(".")
    return required(getattr(getattr(recipe, section), entry), key)


def vocabulary_problems(recipe: Recipe) -> list[str]:
    """What keeps the vocabulary step from starting: files that are not there, each naming its key."""
    concepts = recipe.concepts
    paths = [(key, getattr(concepts, key)) for key in ("wordnet", "words", "bigrams", "titles", "weights")]
    paths += [("lists", path) for path in concepts.lists]
    problems = [
        f"concepts.{key}={path} does not exist (data.balanced= trains on the whole corpus)"
        for key, path in paths
        if path not in ("", "corpus") and not Path(path).exists()
    ]
    if concepts.match == "embedding" and concepts.encoder == "clip" and not concepts.weights:
        problems.append("concepts.weights is empty: name the folder of a CLIP model (data.balanced= trains without)")
    return problems


def sample_count(text: str) -> int:
    """A number of samples, which may end in K, M or B: 85M.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)([KMB]?)", text.upper())
    count = Fraction(found[1].replace("_", "")) * SUFFIXES[found[2]] if found else Fraction(1, 2)
    if count.denominator != 1:
        raise InputError(f"samples={text} is not a number of samples, such as 2000000 or 85M")
    return int(count)


def _run(name: str, arguments: list[str]) -> int:
    path, overrides, own = parse(arguments, name, "recipe file", ("ranks", "samples"))
    if own.get("samples"):
        overrides = [*overrides, f"concepts.samples={sample_count(own['samples'])}"]
    recipe, place = load_recipe(path, overrides), place_of(own)
    if name == "vocabulary" and (problems := vocabulary_problems(recipe)):
        raise InputError(*problems)
    return start(concept_work(name, recipe, data_ranks(own), place.nodes), place)
