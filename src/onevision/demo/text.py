"""Text alone: comparing three digits, and the number that follows another. Every sixth set or number is held out."""

from __future__ import annotations

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, stable_hash

ORIGIN = Origin("arithmetic", "Apache-2.0")
HELDOUT_EVERY = 6

LARGEST = {"en": ("Which number is the largest: {}?",), "zh": ("哪个数最大:{}?",)}
SMALLEST = {"en": ("Which number is the smallest: {}?",), "zh": ("哪个数最小:{}?",)}
NEXT = {"en": ("Which number comes after {}?",), "zh": ("{}的下一个数是几?",)}
TURNS = 2


def text_record(draw: Draw) -> Record:
    """Two questions about numbers, each of its own."""
    rng = draw.rng()
    turns: list[Turn] = []
    while len(turns) < TURNS:
        kind = rng.choice(("largest", "smallest", "next"))
        numbers = [int(n) for n in (rng.integers(1, 99, size=1) if kind == "next" else rng.choice(10, 3, replace=False))]
        if (stable_hash(*sorted(numbers)) % HELDOUT_EVERY == 0) != draw.heldout:
            continue
        if kind == "next":
            turns.append(Turn((), draw.phrase(NEXT).format(numbers[0]), str(numbers[0] + 1)))
        else:
            phrases, answer = (LARGEST, max(numbers)) if kind == "largest" else (SMALLEST, min(numbers))
            turns.append(Turn((), draw.phrase(phrases).format(", ".join(map(str, numbers))), str(answer)))
    return draw.record(turns, [ORIGIN])
