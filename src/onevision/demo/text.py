"""Text alone: the largest or the smallest of three digits.

Every sixth set of digits is held out, in all its orders.
"""

from __future__ import annotations

import numpy as np

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, stable_hash

ORIGIN = Origin("arithmetic", "Apache-2.0")
HELDOUT_EVERY = 6

LARGEST = {
    "en": ("Which number is the largest: {}?", "What is the largest of {}?"),
    "zh": ("哪个数最大：{}？", "最大的数是几：{}？"),
}
SMALLEST = {
    "en": ("Which number is the smallest: {}?", "What is the smallest of {}?"),
    "zh": ("哪个数最小：{}？", "最小的数是几：{}？"),
}
COMMA = {"en": ", ", "zh": "、"}


def text_record(draw: Draw) -> Record:
    """One to three questions, each about three digits of its own."""
    rng = draw.rng()
    turns = []
    for number in draw.items():
        digits = _digits(rng, draw.heldout)
        phrases, answer = (LARGEST, max(digits)) if number % 2 else (SMALLEST, min(digits))
        listed = COMMA[draw.language].join(map(str, digits))
        turns.append(Turn((), draw.phrase(phrases).format(listed), str(answer)))
    return draw.record(turns, [ORIGIN])


def _digits(rng: np.random.Generator, heldout: bool) -> list[int]:
    """Three different digits whose set belongs to the split."""
    while True:
        digits = [int(digit) for digit in rng.choice(10, size=3, replace=False)]
        if (stable_hash(*sorted(digits)) % HELDOUT_EVERY == 0) == heldout:
            return digits
