"""Names in captions: those that a plain search for each name finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onevision.concepts.substring import NameFinder, spaced


def found(names: list[str], caption: str) -> list[str]:
    return [names[number] for number in NameFinder(names).find(caption).tolist()]


NAMES = [
    "lion",
    "sea lion",
    "sea",
    "a",
    "San Francisco",
    "U.S.",
    "rock 'n' roll",
    "苹果",
    "果汁",
    "台湾",
    "sea-lion",
    "Caf\u00e9",
    "\u304c\u304f",
]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A sea lion!", ["lion", "sea lion", "sea", "a"]),
        ("Two sea lions.", ["sea"]),
        ("sealion", []),
        ("sea\n lion,san  FRANCISCO", ["lion", "sea lion", "sea", "San Francisco"]),
        ("San Francisco's fog", []),
        ("in the U.S., sea", ["sea", "U.S."]),
        ("a u.s", ["a"]),
        ("ROCK 'N' ROLL", ["rock 'n' roll"]),
        ("a sea-lion", ["a", "sea-lion"]),
        ("一杯苹果汁和sea。", ["sea", "苹果", "果汁"]),
        ("台湾的lion，a", ["lion", "a", "台湾"]),
        ("苹 果", ["苹果"]),
        ("sea sea sea", ["sea"]),
        ("CAFE\u0301", ["Caf\u00e9"]),
        ("\u304b\u3099\u304f", ["\u304c\u304f"]),  # kana with its voicing mark apart, as macOS writes it
        ("", []),
        (" \n", []),
    ],
)
def test_names_are_whole_words(caption: str, expected: list[str]) -> None:
    assert found(NAMES, caption) == expected


def test_names_that_are_compared_alike_all_count() -> None:
    assert NameFinder(["Sea", "x", "sea", "sea "]).find("the SEA").tolist() == [0, 2, 3]


TEXT = st.text(st.sampled_from("aAb,. '苹果\n"), max_size=12)


@given(st.lists(TEXT.filter(str.strip), min_size=1, max_size=8), TEXT)
def test_all_that_a_plain_search_finds(names: list[str], caption: str) -> None:
    numbers = NameFinder(names).find(caption)
    assert numbers.tolist() == [k for k, name in enumerate(names) if spaced(name) in spaced(caption)]
    assert numbers.dtype == "int32"


def test_blanks_part_the_words() -> None:
    assert spaced("Tea, 苹果x。") == " tea , 苹 果 x 。 "
