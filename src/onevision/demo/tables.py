"""Small tables of measured values, rounded.

A row of a table is a row of the data set, a lettered column one of its features.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Turn, png, stable_hash
from onevision.demo.fonts import font
from onevision.demo.measured import HELDOUT_EVERY, ORIGINS, measured

SETS = ("iris", "wine")  # breast cancer has hardly any feature that rounds to one digit other than 0
SHAPES = ((1, 2), (2, 2), (3, 2), (1, 3), (2, 3), (3, 3), (1, 4), (2, 4))  # (rows, columns) below the letters
LARGEST = (2, 3, 4, 5, 6, 7)
CELL = 28  # pixels
PAPER, LINE, INK, HEADER = (255, 255, 255), (120, 120, 120), (0, 0, 0), (40, 80, 160)

MOST = {
    "en": ("Which number in the table is the largest?", "What is the largest number in the table?"),
    "zh": ("表格里最大的数是几？", "表中哪个数最大？"),
}
COLUMNS = {
    "en": ("How many columns does the table have?", "Count the columns of the table."),
    "zh": ("表格有几列？", "这个表格一共几列？"),
}


def tables_record(draw: Draw) -> Record:
    """One to three tables, one a turn: the largest number, or how many columns."""
    rng = draw.rng()
    turns, origins = [], []
    for number in draw.items():
        rows, columns = SHAPES[number // 2 % len(SHAPES)]
        name, values = _values(rng, rows, columns, draw.heldout)
        question, answer = (MOST, values.max()) if number % 2 else (COLUMNS, columns)
        turns.append(Turn((png(_table(values)),), draw.phrase(question), str(answer)))
        origins.append(ORIGINS[name])
    return draw.record(turns, origins)


@cache
def _rounded(name: str, heldout: bool) -> np.ndarray:
    """Features that round to one digit and are about 1 or more, int [rows, features]."""
    values = measured(name, heldout)
    return np.round(values[:, (values.max(axis=0) < 9.5) & (values.mean(axis=0) >= 1)]).astype(int)


def _values(rng: np.random.Generator, rows: int, columns: int, heldout: bool) -> tuple[str, np.ndarray]:
    """Data set and values, int [rows, columns], redrawn until the largest is a number drawn evenly before.

    Rounded values of different rows may be equal, so the hash of its values too decides the split of a table.
    """
    largest = rng.choice(LARGEST)
    while True:
        name = str(rng.choice(SETS))
        values = _rounded(name, heldout)
        chosen = rng.choice(len(values), size=rows, replace=False)
        features = rng.choice(values.shape[1], size=columns, replace=False)
        cells = values[np.ix_(chosen, features)]
        if cells.max() == largest and (stable_hash(cells.tolist()) % HELDOUT_EVERY == 0) == heldout:
            return name, cells


def _table(values: np.ndarray) -> Image.Image:
    rows, columns = values.shape
    image = Image.new("RGB", (columns * CELL, (rows + 1) * CELL), PAPER)
    draw = ImageDraw.Draw(image)
    letters = font("DejaVuSans-Bold.ttf", 22)
    for row, texts in enumerate([list("ABCD"[:columns]), *values.tolist()]):
        for column, text in enumerate(texts):
            x, y = column * CELL, row * CELL
            box = [x, y, x + CELL - 1, y + CELL - 1]
            draw.rectangle(box, fill=PAPER if row else HEADER, outline=LINE)
            middle = (x + CELL / 2, y + CELL / 2)
            draw.text(middle, str(text), fill=INK if row else PAPER, font=letters, anchor="mm")
    return image
