"""Words, bigrams, titles and lists, and how all sources become one list of names."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import pytest

from onevision.concepts.lists import pmi
from onevision.concepts.names import SOURCES, Names, collect_names
from onevision.errors import DataError, InputError
from onevision.recipe import ConceptRecipe
from tests.concepts.test_wordnet import write_wordnet


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return str(path)


def bits(names: Names, name: str) -> list[str]:
    value = int(names.provenance[names.names.index(name)])
    return [source for number, source in enumerate(SOURCES) if value >> number & 1]


def test_thresholds_are_inclusive_and_frequencies_kept(tmp_path: Path) -> None:
    recipe = ConceptRecipe(
        words=write(tmp_path / "words", "tree\t100", "house\t5000", "rare\t99"),
        bigrams=write(tmp_path / "bigrams", "new york\t7\t30", "of the\t9000\t2.5", "hong kong\t12\t31.25"),
        titles=write(tmp_path / "titles", "Eiffel_Tower\t70", "Nobody\t69.9", "Mona Lisa\t812.5"),
        lists=[write(tmp_path / "mine", "\ufeffsea urchin", "", "sea slug")],
    )
    names = collect_names(recipe, 0.0)
    found = list(zip(names.names, names.frequency.tolist(), strict=True))
    assert found == [
        ("tree", 100), ("house", 5000), ("new york", 7), ("hong kong", 12), ("Eiffel Tower", 70), ("Mona Lisa", 812),
        ("sea urchin", 0), ("sea slug", 0),
    ]  # fmt: skip
    assert names.sources["words"] == {"named": 2, "added": 2} and names.rejects == {}


def test_one_concept_of_several_spellings_and_sources(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café au  lait")
    recipe = ConceptRecipe(
        wordnet=str(write_wordnet(tmp_path / "wordnet")),
        words=write(tmp_path / "words", "DOG\t300", "nile\t200", "dog\t400", "straße\t100"),
        titles=write(tmp_path / "titles", "Dog\t350"),
        lists=[write(tmp_path / "a", " Café au lait ", "STRASSE"), write(tmp_path / "b", decomposed, "guide\u00a0dog")],
    )
    names = collect_names(recipe, 0.0)
    assert names.names[-2:] == ["straße", "Café au lait"]
    assert len(names.names) == 12 and len({name.casefold() for name in names.names}) == 12
    assert bits(names, "dog") == ["wordnet", "words", "titles"] and bits(names, "Nile") == ["wordnet", "words"]
    assert bits(names, "straße") == ["words", "lists"] and bits(names, "guide dog") == ["wordnet", "lists"]
    assert names.frequency[names.names.index("dog")] == 400
    assert names.sources == {
        "wordnet": {"named": 10, "added": 10},
        "words": {"named": 3, "added": 1},
        "titles": {"named": 1, "added": 0},
        "lists": {"named": 3, "added": 1},
    }


def test_lines_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "words",
        "tree\t500", b"caf\xe9\t500", "no number", "bad\tnumber", "minus\t-3", "nan\tnan", "\t500", "x" * 201 + "\t500",
        "a\x07b\t500", "", "huge\t1e30",
    )  # fmt: skip
    names = collect_names(ConceptRecipe(words=path), 1.0)
    assert names.names == ["tree"]
    assert names.rejects == {path: {"control_character": 1, "no_count": 5, "no_name": 1, "not_utf8": 1, "too_long": 1}}
    with pytest.raises(DataError) as caught:
        collect_names(ConceptRecipe(words=path), 0.5)
    assert str(caught.value) == (
        f"{path}: 9 of 10 lines (90.0%) cannot be used, more than data.reject_threshold=0.5 allows "
        "(control_character: 1, no_count: 5, no_name: 1, not_utf8: 1, too_long: 1; line 2 is not_utf8)"
    )


def test_pmi_of_counts(tmp_path: Path) -> None:
    words = write(tmp_path / "words", "hong\t16", "kong\t16", "the\t1024", "tree\t8", "more\t984")
    bigrams = write(tmp_path / "bigrams", "hong kong\t16", "the tree\t4")
    # 2048 words in all: log2(16 * 2048 / (16 * 16)) = 7, log2(4 * 2048 / (1024 * 8)) = 0
    assert pmi(16, 16, 16, 2048) == 7 and pmi(4, 1024, 8, 2048) == 0
    assert math.isclose(pmi(3, 50, 7, 1000), math.log2(3 * 1000 / (50 * 7)))
    recipe = ConceptRecipe(words=words, bigrams=bigrams, min_word_count=10_000, min_bigram_pmi=7)
    assert collect_names(recipe, 0.0).names == ["hong kong"]
    with pytest.raises(DataError, match="no concept is left of concepts.words, concepts.bigrams"):
        collect_names(ConceptRecipe(words=words, bigrams=bigrams, min_word_count=10_000, min_bigram_pmi=7.1), 0.0)


def test_bigrams_without_what_pmi_needs(tmp_path: Path) -> None:
    words = write(tmp_path / "words", "new\t600", "york\t600")
    bigrams = write(tmp_path / "bigrams", "new york\t500", "new york city\t100", "new jersey\t200", "new age\tx")
    names = collect_names(ConceptRecipe(words=words, bigrams=bigrams, min_bigram_pmi=0), 1.0)
    assert names.names == ["new", "york", "new york"]
    assert names.rejects[bigrams] == {"no_count": 1, "no_word_count": 1, "not_two_words": 1}
    with pytest.raises(InputError, match="line 1: 'new york' has no PMI, .* set concepts.words too"):
        collect_names(ConceptRecipe(bigrams=bigrams), 1.0)


def test_no_source_and_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        collect_names(ConceptRecipe(), 0.0)
    assert str(caught.value) == (
        "a vocabulary has no source: set at least one of concepts.wordnet, concepts.words, concepts.bigrams, "
        "concepts.titles, concepts.lists"
    )
    for recipe in (
        ConceptRecipe(words=str(tmp_path / "none")),
        ConceptRecipe(bigrams=str(tmp_path / "none")),
        ConceptRecipe(titles=str(tmp_path / "none")),
        ConceptRecipe(lists=[str(tmp_path / "none")]),
        ConceptRecipe(wordnet=str(tmp_path / "none")),
    ):
        with pytest.raises(InputError, match="none.* cannot be read"):
            collect_names(recipe, 0.0)
