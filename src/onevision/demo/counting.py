"""Counting scenes: one to six circles or squares in two colours.

A scene belongs to the held-out split when the hash of its pixels is 0 modulo `HELDOUT_EVERY`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, png, stable_hash

ORIGIN = Origin("drawn scenes", "Apache-2.0")
HELDOUT_EVERY = 8

COLOURS = ((210, 40, 40), (40, 80, 210), (30, 140, 60), (230, 150, 20))
# (columns, rows) of the grid of places. A place, 28 pixels wide and high, holds one shape: none touch.
GRIDS = ((3, 2), (2, 3), (3, 3), (4, 2))
PLACE = 28
SIDES = range(14, 22)  # pixels
MOST = 6

HOW_MANY = {
    "circles": {
        "en": ("How many circles are there?", "Count the circles."),
        "zh": ("有几个圆？", "数一数圆。"),
    },
    "squares": {
        "en": ("How many squares are there?", "Count the squares."),
        "zh": ("有几个方块？", "数一数方块。"),
    },
}


def counting_record(draw: Draw) -> Record:
    """One to three scenes, one a turn: how many shapes there are."""
    rng = draw.rng()
    shape = str(rng.choice(list(HOW_MANY)))
    turns = []
    for number in draw.items():
        count = 1 + number % MOST
        image = png(_scene_of(rng, shape, count, draw.heldout))
        turns.append(Turn((image,), draw.phrase(HOW_MANY[shape]), str(count)))
    return draw.record(turns, [ORIGIN])


def _scene_of(rng: np.random.Generator, shape: str, count: int, heldout: bool) -> Image.Image:
    while True:
        scene = _scene(rng, shape, count)
        if (stable_hash(scene.size, scene.tobytes().hex()) % HELDOUT_EVERY == 0) == heldout:
            return scene


def _scene(rng: np.random.Generator, shape: str, count: int) -> Image.Image:
    columns, rows = GRIDS[rng.integers(len(GRIDS))]
    image = Image.new("RGB", (columns * PLACE, rows * PLACE), "white")
    draw = ImageDraw.Draw(image)
    colours = rng.permutation(len(COLOURS))[:2]
    for place in rng.permutation(columns * rows)[:count]:
        row, column = divmod(int(place), columns)
        side = int(rng.choice(SIDES))
        x = column * PLACE + int(rng.integers(1, PLACE - side))
        y = row * PLACE + int(rng.integers(1, PLACE - side))
        paint = draw.ellipse if shape == "circles" else draw.rectangle
        paint([x, y, x + side, y + side], fill=COLOURS[rng.choice(colours)])
    return image
