"""WordNet's data files: small ones in the published format, and Debian's where they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from onevision.concepts.wordnet import FILES, read_synsets, wordnet_names
from onevision.errors import DataError, InputError

DEBIAN = Path("/usr/share/wordnet")
LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n  2 Princeton University.  \n"
NOUNS = (
    "00000100 03 n 01 entity 0 002 ~ 00000200 n 0000 ~ 00000300 n 0000 | all there is  ",
    "00000200 03 n 02 physical_entity 0 thing 0 003 @ 00000100 n 0000 ~ 00000400 n 0000 ~ 00000500 n 0000 | a thing  ",
    "00000300 03 n 01 abstraction 0 001 @ 00000100 n 0000 | a thought  ",
    "00000400 17 n 02 river 0 stream 1 002 @ 00000200 n 0000 ~i 00000600 n 0000 | water that flows  ",
    "00000500 05 n 01 dog 0 003 @ 00000200 n 0000 ~ 00000700 n 0000 + 00000900 v 0101 | \"it barks | it bites\"  ",
    "00000600 15 n 0b Nile 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 k 0 001 @i 00000400 n 0000 | a river in Africa  ",
    "00000700 05 n 01 guide_dog 0 002 @ 00000500 n 0000 @ 00000400 n 0000 | a dog that leads  ",
    "00000800 10 n 01 dog 1 001 @ 00000300 n 0000 | a dull person  ",
)
OTHERS = {
    "data.verb": ("00000900 38 v 01 dog 0 001 + 00000500 n 0101 01 + 08 00 | go after  ",),
    "data.adj": (
        "00001000 00 a 01 afloat(p) 0 000 | on the water  ",
        "00001100 00 s 02 elect(ip) 0 x(a) 0 001 & 00001000 a 0000 | chosen  ",
    ),
    "data.adv": ("00001200 02 r 01 a_la_carte 0 000 | by the card  ",),
}


def write_wordnet(folder: Path, nouns: tuple[str, ...] = NOUNS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in {"data.noun": nouns, **OTHERS}.items():
        (folder / name).write_text(LICENCE + "".join(f"{line}\n" for line in lines))
    return folder


def test_a_synset_gives_its_first_word(tmp_path: Path) -> None:
    names = list(wordnet_names(write_wordnet(tmp_path)))
    assert names == [
        "entity", "physical entity", "abstraction", "river", "dog", "Nile", "guide dog", "dog", "dog", "afloat",
        "elect", "a la carte",
    ]  # fmt: skip
    nile = next(synset for synset in read_synsets(tmp_path / "data.noun") if synset.number == "00000600")
    assert len(nile.words) == 11 and nile.below == () and nile.gloss == "a river in Africa"


def test_all_words_of_a_synset(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    first, every = (list(wordnet_names(tmp_path, words=words)) for words in ("first", "all"))
    assert every == [word for name in FILES for synset in read_synsets(tmp_path / name) for word in synset.words]
    assert len(every) > len(first)


def test_what_lies_under_a_synset(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    physical = ["physical entity", "river", "dog", "Nile", "guide dog"]
    assert list(wordnet_names(tmp_path, ["physical_entity"])) == physical
    assert list(wordnet_names(tmp_path, ["Thing"])) == list(wordnet_names(tmp_path, ["physical entity"]))
    assert list(wordnet_names(tmp_path, ["stream", "abstraction"])) == ["abstraction", "river", "Nile"]
    assert list(wordnet_names(tmp_path, ["00000500"])) == ["dog", "guide dog"]


def test_a_word_that_names_none_or_several(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    with pytest.raises(InputError, match="wordnet_under=cat: no synset of .*data.noun has this word or number"):
        list(wordnet_names(tmp_path, ["cat"]))
    with pytest.raises(InputError) as caught:
        list(wordnet_names(tmp_path, ["dog"]))
    assert "in 2 synsets, name one: 00000500" in str(caught.value) and '00000800 "a dull person"' in str(caught.value)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("not a synset at all", "it does not begin with eight digits"),
        ("00000100 03 n 01 entity 0 000", "has no gloss"),
        ("00000100 03 q 01 entity 0 000 | gloss", "a type"),
        ("00000100 03 n zz entity 0 000 | gloss", "invalid literal"),
        ("00000100 03 n 02 entity 0 000 | gloss", "list index out of range"),
        ("00000100 03 n 01 entity 0 002 ~ 00000200 n 0000 | gloss", "1 words and 2 pointers are announced"),
        ("00000100 03 n 00 000 | gloss", "0 words"),
        ("00000100 03", "has no gloss"),
    ],
)
def test_a_malformed_line_is_named(line: str, found: str, tmp_path: Path) -> None:
    write_wordnet(tmp_path, (NOUNS[0], line))
    with pytest.raises(DataError) as caught:
        list(wordnet_names(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/data.noun, line 4: no synset of WordNet (") and "\n" not in message
    assert found in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (write_wordnet(tmp_path) / "data.noun").write_bytes(b"00000100 03 n 01 caf\xe9 0 000 | gloss\n")
    with pytest.raises(DataError, match="line 1: no synset of WordNet"):
        list(wordnet_names(tmp_path))


def test_files_that_are_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.noun cannot be read .*set concepts.wordnet"):
        list(wordnet_names(tmp_path))
    (write_wordnet(tmp_path) / "data.adv").write_text(LICENCE)
    with pytest.raises(DataError, match="data.adv holds no synset"):
        list(wordnet_names(tmp_path))


def test_a_pointer_to_nowhere(tmp_path: Path) -> None:
    write_wordnet(tmp_path, NOUNS[:1])
    with pytest.raises(DataError, match="data.noun: synset 00000100 has a pointer to 00000"):
        list(wordnet_names(tmp_path, ["entity"]))


@pytest.mark.skipif(not (DEBIAN / "data.noun").exists(), reason="Debian's wordnet-base is not installed")
def test_wordnet_3(tmp_path: Path) -> None:
    counts = [sum(1 for _ in read_synsets(DEBIAN / name)) for name in FILES[1:]]
    assert counts == [13767, 18156, 3621]
    physical = list(wordnet_names(DEBIAN, ["physical_entity"]))
    assert len(physical) == 46162
    assert {"dog", "fire engine", "Nile", "water"} <= set(physical) and "justice" not in physical
    everything = list(wordnet_names(DEBIAN))
    assert len(everything) == 82115 + sum(counts) and len({name.casefold() for name in everything}) == 86571
    assert not [name for name in everything if set(name) & set("()_")]
