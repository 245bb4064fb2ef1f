"""The vocabulary and the concepts step on real pictures and captions: Debian's tuxpaint stamps and WordNet."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from onevision.concepts.build import build_concepts
from onevision.concepts.captions import caption
from onevision.concepts.index import ConceptIndex
from onevision.concepts.vocabulary import Vocabulary, build_vocabulary
from onevision.corpus.reader import CorpusReader
from onevision.corpus.record import Record
from onevision.recipe import Recipe
from tests.concepts.cases import change, make_recipe
from tests.concepts.stamps import STAMPS, stamp_records

WORDNET = Path("/usr/share/wordnet")
pytestmark = pytest.mark.skipif(
    not (STAMPS.exists() and WORDNET.exists()), reason="needs Debian's tuxpaint-stamps-default and wordnet-base"
)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return stamp_records()


def joined(recipe: Recipe, folder: Path) -> tuple[list[str], list[list[str]]]:
    """Make vocabulary and concepts; returns the captions, and the names that each sample has."""
    recipe = change(recipe, vocabulary=str(folder / "vocabulary"))
    build_vocabulary(recipe, recipe.concepts.vocabulary, report=str)
    build_concepts(recipe, folder / "concepts", report=str)
    index, corpus = ConceptIndex.open(folder / "concepts"), CorpusReader(recipe.data.corpus)
    names = Vocabulary.open(recipe.concepts.vocabulary).names
    ends = np.cumsum(np.asarray(index.matches, np.int64)).tolist()
    found = [[names[c] for c in index.concept[a:b].tolist()] for a, b in pairwise([0, *ends])]
    return [caption(corpus.record(row)) for row in range(len(corpus))], found


def test_all_captions_are_read(records: list[Record]) -> None:
    assert Counter(record.language for record in records) == {"en": 785, "zh": 713}
    assert len({record.id for record in records}) == len(records)


def test_captions_name_physical_things(records: list[Record], tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path, records, 400, vocabulary="", match="substring", encoder_batch=64, wordnet=str(WORDNET)
    )
    captions, found = joined(change(recipe, wordnet_under=["physical_entity"]), tmp_path)
    known = dict(zip(captions, map(set, found), strict=True))
    assert known["A penguin."] >= {"penguin"} and "duck" not in known["A penguin."]
    assert known["A polo shirt."] >= {"polo shirt", "shirt"}
    assert known["青蛙。"] == set()  # WordNet is English
    english = [names for text, names in known.items() if text.isascii()]
    assert np.mean([bool(names) for names in english]) > 0.9


def test_fruit_is_known_by_its_caption(records: list[Record], tmp_path: Path) -> None:
    fruit = [record for record in records if record.id.startswith("food/fruit/") and record.language == "en"]
    recipe = make_recipe(tmp_path, fruit, 400, vocabulary="", wordnet=str(WORDNET), encoder_batch=64)
    captions, found = joined(change(recipe, wordnet_under=["edible_fruit"]), tmp_path)
    named = [names[0] in text.lower() for text, names in zip(captions, found, strict=True)]
    assert len(named) > 20 and np.mean(named) > 0.7, list(zip(captions, found, strict=True))
