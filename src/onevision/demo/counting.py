"""Counting scenes: circles and squares in two colours."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, png, stable_hash

ORIGIN = Origin("drawn scenes", "Apache-2.0")
HELDOUT_EVERY = 8  # a scene belongs to the held-out split when its pixels hash to 0 modulo this

COLOURS = {"red": (210, 40, 40), "blue": (40, 80, 210)}
# (columns, rows) of the grid of places; a place is 28 pixels wide and high.
GRIDS = ((3, 2), (2, 3), (3, 3), (4, 2))
PLACE = 28

ALL = {"en": ("How many shapes are there?", "Count the shapes."), "zh": ("一共有几个图形?",)}
OF_COLOUR = {
    "red": {"en": ("How many red shapes are there?", "Count the red shapes."), "zh": ("有几个红色图形?",)},
    "blue": {"en": ("How many blue shapes are there?", "Count the blue shapes."), "zh": ("有几个蓝色图形?",)},
}


def counting_record(draw: Draw) -> Record:
    """One to six shapes: how many in all, or how many of a colour."""
    rng = draw.rng()
    while True:
        image, counts = _scene(rng)
        if (stable_hash(image.size, image.tobytes().hex()) % HELDOUT_EVERY == 0) == draw.heldout:
            break
    questions = [(draw.phrase(ALL), str(sum(counts.values())))]
    questions += [(draw.phrase(OF_COLOUR[colour]), str(count)) for colour, count in counts.items() if count]
    asked = rng.permutation(len(questions))[: int(rng.integers(1, 3))]
    turns = [Turn((png(image),) if i == 0 else (), *questions[k]) for i, k in enumerate(asked)]
    return draw.record(turns, [ORIGIN])


def _scene(rng: np.random.Generator) -> tuple[Image.Image, dict[str, int]]:
    columns, rows = GRIDS[rng.integers(len(GRIDS))]
    total = int(rng.integers(1, 7))
    places = rng.permutation(columns * rows)[:total]
    image = Image.new("RGB", (columns * PLACE, rows * PLACE), "white")
    draw = ImageDraw.Draw(image)
    counts = dict.fromkeys(COLOURS, 0)
    for place in places:
        row, column = divmod(int(place), columns)
        side = int(rng.integers(14, 22))
        x = column * PLACE + int(rng.integers(1, PLACE - side))
        y = row * PLACE + int(rng.integers(1, PLACE - side))
        colour = str(rng.choice(list(COLOURS)))
        counts[colour] += 1
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([x, y, x + side, y + side], fill=COLOURS[colour])
    return image, counts
