"""Printed words in the DejaVu fonts that matplotlib ships.

The words of the held-out split also occur in training; new there is the pair of word and font, and with it
every rendering. So the category measures reading a known word in an unseen type, not spelling an unknown one.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, png
from onevision.demo.fonts import font

ORIGIN = Origin("words set in DejaVu fonts (matplotlib)", "Apache-2.0 AND Bitstream-Vera")
HELDOUT_EVERY = 6

# Names of this demo's features, species and photographs.
WORDS = (
    "acid", "area", "ash", "brick", "cat", "color", "cup", "digit", "error", "eye", "flower", "grass",
    "gravel", "iris", "leaves", "mean", "moon", "petal", "radius", "sepal", "sky", "stars", "temple", "wine",
)  # fmt: skip
FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans-BoldOblique.ttf",
    "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf", "DejaVuSansMono-BoldOblique.ttf",
)  # fmt: skip
SIZES = range(32, 37)  # pixels
HEIGHTS = range(52, 62)  # of the image, pixels
LEAST_WIDTH = 112
INKS = ((0, 0, 0), (20, 20, 70), (70, 15, 15))
PAPERS = ((255, 255, 255), (255, 250, 235))

WHAT = {
    "en": ("What does it say?", "Read the word."),
    "zh": ("图中写的是什么？", "读出这个单词。"),
}


def ocr_record(draw: Draw) -> Record:
    """One to three words to read, one a turn."""
    rng = draw.rng()
    turns = []
    for number in draw.items():
        word = number % len(WORDS)
        faces = faces_of(word, draw.heldout)
        image = png(_line(WORDS[word], faces[rng.integers(len(faces))], rng))
        turns.append(Turn((image,), draw.phrase(WHAT), WORDS[word]))
    return draw.record(turns, [ORIGIN])


def faces_of(word: int, heldout: bool) -> list[str]:
    """Fonts in which a split may set the word of this number."""
    return [face for i, face in enumerate(FONTS) if ((i + word) % HELDOUT_EVERY == 0) == heldout]


def _line(word: str, face: str, rng: np.random.Generator) -> Image.Image:
    letters = font(face, int(rng.choice(SIZES)))
    left, _, right, _ = letters.getbbox(word, anchor="lm")
    width = max(LEAST_WIDTH, round(right - left) + int(rng.integers(6, 16)))
    height = int(rng.choice(HEIGHTS))
    image = Image.new("RGB", (width, height), PAPERS[rng.integers(len(PAPERS))])
    x = int(rng.integers(3, 6)) - left
    ink = INKS[rng.integers(len(INKS))]
    ImageDraw.Draw(image).text((x, height / 2), word, fill=ink, font=letters, anchor="lm")
    return image
