"""Bar charts and number tables drawn from data sets that scikit-learn ships.

A bar is the mean of a measured feature over a few random rows; a table shows measured values. Every fourth row of a data
set is held out. Only sets under CC BY 4.0 (UCI Machine Learning Repository) are used.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_breast_cancer, load_iris, load_wine

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, png
from onevision.demo.fonts import font

LOADERS = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
ORIGINS = {
    "iris": Origin("scikit-learn iris (UCI Iris, R. A. Fisher)", "CC-BY-4.0"),
    "wine": Origin("scikit-learn wine (UCI Wine)", "CC-BY-4.0"),
    "breast cancer": Origin("scikit-learn breast cancer (UCI Breast Cancer Wisconsin Diagnostic)", "CC-BY-4.0"),
}
HELDOUT_EVERY = 4

COLOURS = {
    "en": ("red", "green", "blue", "yellow"),
    "zh": ("红色", "绿色", "蓝色", "黄色"),
}
RGB = ((214, 39, 40), (44, 150, 44), (31, 90, 200), (240, 200, 20))
GREY = (90, 90, 90)
# (width, height) of a chart in pixels.
CHARTS = ((84, 84), (112, 84), (84, 70), (98, 84))
ROWS_A_BAR = 6
CLEAR = 1.35  # the tallest bar is at least this many times the second

TALLEST = {"en": ("Which bar is the tallest?", "What colour is the tallest bar?"), "zh": ("哪个颜色的柱子最高?",)}
LEFT = {"en": ("What colour is the left bar?",), "zh": ("最左边的柱子是什么颜色?",)}
RIGHT = {"en": ("What colour is the right bar?",), "zh": ("最右边的柱子是什么颜色?",)}
BARS = {"en": ("How many bars are there?",), "zh": ("图中有几根柱子?",)}

# (rows, columns) of a table.
TABLES = ((2, 2), (3, 2), (2, 3), (3, 3), (4, 1), (1, 4), (4, 2), (2, 4))
ROWS = {"en": ("How many rows does the table have?",), "zh": ("表格有几行?",)}
COLUMNS = {"en": ("How many columns does the table have?",), "zh": ("表格有几列?",)}
MOST = {"en": ("Which number in the table is the largest?",), "zh": ("表格里最大的数是几?",)}


def charts_record(draw: Draw) -> Record:
    """One to three bar charts of two to four bars: the tallest, how many."""
    rng = draw.rng()
    turns, origins = [], []
    for number in range(draw.items()):
        count = 2 + draw.index % 3 if number == 0 else int(rng.integers(2, 5))
        name, heights = _bars(rng, count, draw.heldout)
        colours = rng.permutation(len(RGB))[:count]
        image = png(_chart(heights, [RGB[i] for i in colours], rng))
        if rng.random() < 0.5:
            turns.append(Turn((image,), draw.phrase(TALLEST), COLOURS[draw.language][colours[int(np.argmax(heights))]]))
        else:
            turns.append(Turn((image,), draw.phrase(BARS), str(count)))
        origins.append(ORIGINS[name])
    return draw.record(turns, origins)


def tables_record(draw: Draw) -> Record:
    """One to three small tables of measured values: rows, columns, the largest number."""
    rng = draw.rng()
    turns, origins = [], []
    for number in range(draw.items()):
        rows, columns = TABLES[(draw.index + number) % len(TABLES)]
        name, values = _cells(rng, rows, columns, draw.heldout)
        answers = ((ROWS, rows), (COLUMNS, columns), (MOST, values.max()))
        question, answer = answers[rng.integers(len(answers))]
        turns.append(Turn((png(_table(values, rng)),), draw.phrase(question), str(answer)))
        origins.append(ORIGINS[name])
    return draw.record(turns, origins)


@cache
def _rows(name: str, heldout: bool) -> np.ndarray:
    """Measured values of a split, float64 [rows, features]; features that are hardly ever 1 or more are left out."""
    values = LOADERS[name]().data
    chosen = (np.arange(len(values)) % HELDOUT_EVERY == HELDOUT_EVERY - 1) == heldout
    return values[chosen][:, values.mean(axis=0) >= 1]


def _bars(rng: np.random.Generator, count: int, heldout: bool) -> tuple[str, np.ndarray]:
    """Data set and `count` means of one of its features, redrawn until the tallest bar is clear."""
    while True:
        name = str(rng.choice(list(LOADERS)))
        rows = _rows(name, heldout)
        feature = int(rng.integers(rows.shape[1]))
        heights = rows[rng.integers(len(rows), size=(count, ROWS_A_BAR)), feature].mean(axis=1)
        ordered = np.sort(heights)
        if ordered[-1] >= CLEAR * ordered[-2]:
            return name, heights


def _cells(rng: np.random.Generator, rows: int, columns: int, heldout: bool) -> tuple[str, np.ndarray]:
    """Data set and measured values rounded to one digit, int [rows, columns]; the largest is evenly spread from 1 on."""
    name = str(rng.choice(list(LOADERS)))
    values = np.round(_rows(name, heldout)).astype(int)
    pool = values[values < 10]
    largest = rng.choice(np.unique(pool)[1:])
    cells = np.append(largest, rng.choice(pool[pool <= largest], size=rows * columns - 1))
    return name, rng.permutation(cells).reshape(rows, columns)


def _chart(heights: np.ndarray, colours: list[tuple[int, int, int]], rng: np.random.Generator) -> Image.Image:
    width, height = CHARTS[rng.integers(len(CHARTS))]
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    left, floor, top = 6, height - 6, int(rng.integers(4, 12))
    draw.line([(left, top), (left, floor), (width - 4, floor)], fill=GREY, width=1)
    slot = (width - 4 - left) / len(heights)
    bar = slot * rng.uniform(0.55, 0.8)
    for i, (value, colour) in enumerate(zip(heights, colours, strict=True)):
        x = left + slot * i + (slot - bar) / 2
        y = floor - (floor - top) * value / heights.max()
        draw.rectangle([round(x), round(y), round(x + bar), floor - 1], fill=colour)
    return image


def _table(values: np.ndarray, rng: np.random.Generator) -> Image.Image:
    rows, columns = values.shape
    cell_width, cell_height = 28, 28
    image = Image.new("L", (columns * cell_width, rows * cell_height), 255)
    draw = ImageDraw.Draw(image)
    digits = font("DejaVuSans-Bold.ttf", 24)
    for row in range(rows):
        for column in range(columns):
            x, y = column * cell_width, row * cell_height
            draw.rectangle([x, y, x + cell_width, y + cell_height], outline=120)
            draw.text((x + cell_width / 2, y + cell_height / 2), str(values[row, column]), fill=0, font=digits, anchor="mm")
    return image
