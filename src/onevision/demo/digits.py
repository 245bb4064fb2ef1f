"""Handwritten digits: the 1,797 scans of 8 x 8 pixels that scikit-learn ships, enlarged.

Every sixth scan is held out. Training moves and resizes scans on their sheets; a held-out one stands
in the middle.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, png

ORIGIN = Origin("scikit-learn digits (UCI Optical Recognition of Handwritten Digits)", "CC-BY-4.0")
HELDOUT_EVERY = 6
# (width, height) of the sheet in pixels; those that are no multiple of 28 are resized by the model's rule.
SHEETS = ((56, 56), (56, 56), (56, 56), (60, 56), (64, 64), (56, 66), (84, 56))

ONE = {"en": ("Which digit is this?", "Read the digit."), "zh": ("这是哪个数字？", "图中是什么数字？")}
SEVERAL = {
    "en": ("Read the digits in order.", "Which digits are these, in order?"),
    "zh": ("按顺序读出这些数字。", "依次是哪些数字？"),
}
PARITY = {"en": ("Is it even or odd?", "Even or odd?"), "zh": ("它是偶数还是奇数？", "偶数还是奇数？")}
ABOVE_FOUR = {
    "en": ("Is it larger than 4?", "Is the digit above 4?"),
    "zh": ("它大于4吗？", "这个数字比4大吗？"),
}
PARITY_ANSWER = {"en": ("even", "odd"), "zh": ("偶数", "奇数")}
YES = {"en": ("no", "yes"), "zh": ("否", "是")}

# Shares of the kinds of record. Held-out records only read, so that chance is one in ten or less.
KINDS = ("one", "two", "three", "then", "parity", "above", "both")
TRAIN_SHARES = (0.2, 0.15, 0.15, 0.25, 0.1, 0.05, 0.1)
HELDOUT_SHARES = (0.65, 0.13, 0.07, 0.15, 0.0, 0.0, 0.0)


def digits_record(draw: Draw) -> Record:
    """One to three scans, one to three turns."""
    rng = draw.rng()
    kind = rng.choice(KINDS, p=HELDOUT_SHARES if draw.heldout else TRAIN_SHARES)
    count = {"two": 2, "three": 3, "then": int(rng.integers(2, 4))}.get(kind, 1)
    scans, labels = _scans(draw.heldout)
    chosen = rng.choice(len(labels), size=count, replace=False)
    images = tuple(png(_sheet(scans[i], rng, moved=not draw.heldout)) for i in chosen)
    values = [int(labels[i]) for i in chosen]

    if kind in ("two", "three"):
        return draw.record([Turn(images, draw.phrase(SEVERAL), " ".join(map(str, values)))], [ORIGIN])
    turns = [Turn(images[:1], draw.phrase(ONE), str(values[0]))]
    if kind == "then":
        turns += [Turn(images[i : i + 1], draw.phrase(ONE), str(values[i])) for i in range(1, count)]
    if kind in ("parity", "both"):
        turns.append(Turn((), draw.phrase(PARITY), PARITY_ANSWER[draw.language][values[0] % 2]))
    if kind in ("above", "both"):
        turns.append(Turn((), draw.phrase(ABOVE_FOUR), YES[draw.language][values[0] > 4]))
    return draw.record(turns, [ORIGIN])


@cache
def _scans(heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scans of a split: uint8 [n, 8, 8], dark ink on white, and their labels int [n]."""
    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % HELDOUT_EVERY == HELDOUT_EVERY - 1) == heldout
    ink = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return 255 - ink, digits.target[chosen]


def _sheet(scan: np.ndarray, rng: np.random.Generator, moved: bool) -> Image.Image:
    """The scan, enlarged, on a white sheet."""
    width, height = SHEETS[rng.integers(len(SHEETS))]
    side = int(rng.choice((48, 52, 56)))
    left, top = (width - side) // 2, (height - side) // 2
    if moved:
        side = int(rng.integers(46, 57))
        rooms = (width - side, height - side)
        left, top = (int(rng.integers(max(0, room // 2 - 3), room // 2 + 4)) for room in rooms)
    digit = Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC)
    sheet = Image.new("L", (width, height), 255)
    sheet.paste(digit, (left, top))
    return sheet
