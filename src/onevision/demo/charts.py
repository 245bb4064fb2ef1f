"""Bar charts of measured values. A bar is the mean of one feature over a few random rows of a data set."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Turn, png
from onevision.demo.measured import ORIGINS, measured

NAMES = {"en": ("red", "green", "blue", "yellow"), "zh": ("红色", "绿色", "蓝色", "黄色")}
COLOURS = ((214, 39, 40), (44, 150, 44), (31, 90, 200), (240, 200, 20))
GREY = (90, 90, 90)
# (width, height) of a chart in pixels.
SHEETS = ((84, 84), (112, 84), (84, 70), (98, 84))
COUNTS = (2, 3, 4)
ROWS_A_BAR = 6
CLEAR = 1.35  # the tallest bar is at least this many times the second

TALLEST = {
    "en": ("Which bar is the tallest?", "What colour is the tallest bar?"),
    "zh": ("哪个颜色的柱子最高？", "最高的柱子是什么颜色？"),
}
HOW_MANY = {
    "en": ("How many bars are there?", "Count the bars."),
    "zh": ("图中有几根柱子？", "一共几根柱子？"),
}


def charts_record(draw: Draw) -> Record:
    """One to three bar charts, one a turn: the colour of the tallest bar, or how many bars there are."""
    rng = draw.rng()
    turns, origins = [], []
    for number in draw.items():
        count = COUNTS[number // 2 % len(COUNTS)]
        name, heights = _heights(rng, count, draw.heldout)
        colours = rng.permutation(len(COLOURS))[:count]
        image = png(_chart(heights, [COLOURS[i] for i in colours], rng))
        if number % 2:
            question, answer = draw.phrase(TALLEST), NAMES[draw.language][colours[int(np.argmax(heights))]]
        else:
            question, answer = draw.phrase(HOW_MANY), str(count)
        turns.append(Turn((image,), question, answer))
        origins.append(ORIGINS[name])
    return draw.record(turns, origins)


def _heights(rng: np.random.Generator, count: int, heldout: bool) -> tuple[str, np.ndarray]:
    """Data set and `count` means of one of its features, redrawn until the tallest bar is clear."""
    while True:
        name = str(rng.choice(list(ORIGINS)))
        rows = measured(name, heldout)
        feature = int(rng.integers(rows.shape[1]))
        heights = rows[rng.integers(len(rows), size=(count, ROWS_A_BAR)), feature].mean(axis=1)
        second, first = np.sort(heights)[-2:]
        if first >= CLEAR * second > 0:
            return name, heights


def _chart(heights: np.ndarray, colours: list[tuple[int, int, int]], rng: np.random.Generator) -> Image.Image:
    width, height = SHEETS[rng.integers(len(SHEETS))]
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    left, right, floor, top = 6, width - 4, height - 6, int(rng.integers(4, 12))
    draw.line([(left, top), (left, floor), (right, floor)], fill=GREY, width=1)
    slot = (right - left) / len(heights)
    bar = slot * rng.uniform(0.55, 0.8)
    for i, (value, colour) in enumerate(zip(heights, colours, strict=True)):
        x = left + slot * i + (slot - bar) / 2
        y = floor - (floor - top) * value / heights.max()
        # A bar of a tiny mean still shows as two lines of pixels.
        draw.rectangle([round(x), min(round(y), floor - 2), round(x + bar), floor - 1], fill=colour)
    return image
