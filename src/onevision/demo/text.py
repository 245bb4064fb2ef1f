"""Text alone: the largest or the smallest of three digits. Every sixth set of digits is held out, in any order."""

from __future__ import annotations

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, stable_hash

ORIGIN = Origin("arithmetic", "Apache-2.0")
HELDOUT_EVERY = 6

LARGEST = {"en": ("Which number is the largest: {}?",), "zh": ("哪个数最大:{}?",)}
SMALLEST = {"en": ("Which number is the smallest: {}?",), "zh": ("哪个数最小:{}?",)}


def text_record(draw: Draw) -> Record:
    """One to three questions, each with three digits of its own."""
    rng = draw.rng()
    turns: list[Turn] = []
    while len(turns) < draw.items():
        numbers = [int(n) for n in rng.choice(10, size=3, replace=False)]
        if (stable_hash(*sorted(numbers)) % HELDOUT_EVERY == 0) != draw.heldout:
            continue
        phrases, answer = ((LARGEST, max(numbers)), (SMALLEST, min(numbers)))[rng.integers(2)]
        turns.append(Turn((), draw.phrase(phrases).format(", ".join(map(str, numbers))), str(answer)))
    return draw.record(turns, [ORIGIN])
