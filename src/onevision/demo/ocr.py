"""Printed words: names from the data sets and photographs of this demo, set in the DejaVu fonts that matplotlib ships.

The words of the held-out split also occur in training; what is new there is the pair of word and font, and with it every
rendering. So the category measures reading a known word in an unseen type, not spelling an unknown one.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, png
from onevision.demo.fonts import font

ORIGIN = Origin("rendered words, DejaVu fonts of matplotlib", "Apache-2.0 AND Bitstream-Vera")
HELDOUT_EVERY = 6

WORDS = tuple(
    "acid area ash brick cat color cup digit error eye flower grass gravel iris leaves mean moon petal radius sepal sky stars "
    "temple wine".split()
)
FONTS = tuple(
    f"DejaVu{family}.ttf"
    for family in (
        "Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique", "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic",
        "SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique",
    )
)  # fmt: skip
INKS = ((0, 0, 0), (20, 20, 70), (70, 15, 15))
PAPERS = ((255, 255, 255), (255, 250, 235))

WHAT = {
    "en": ("What does it say?", "Read the word."),
    "zh": ("图中写的是什么?", "读出这个单词。"),
}


def ocr_record(draw: Draw) -> Record:
    """One to three words to read, one a turn."""
    rng = draw.rng()
    first = draw.index % len(WORDS)
    others = rng.choice([i for i in range(len(WORDS)) if i != first], size=draw.items() - 1, replace=False)
    turns = []
    for number in (first, *others):
        faces = [face for i, face in enumerate(FONTS) if ((i + number) % HELDOUT_EVERY == 0) == draw.heldout]
        image = png(_line(WORDS[number], faces[rng.integers(len(faces))], rng))
        turns.append(Turn((image,), draw.phrase(WHAT), WORDS[number]))
    return draw.record(turns, [ORIGIN])


def _line(word: str, face: str, rng: np.random.Generator) -> Image.Image:
    letters = font(face, int(rng.integers(32, 37)))
    left, _, right, _ = letters.getbbox(word, anchor="lm")
    width = max(112, round(right - left) + int(rng.integers(6, 16)))
    height = int(rng.integers(52, 62))
    image = Image.new("RGB", (width, height), PAPERS[rng.integers(len(PAPERS))])
    x = int(rng.integers(3, 6)) - left
    ink = INKS[rng.integers(len(INKS))]
    ImageDraw.Draw(image).text((x, height / 2), word, fill=ink, font=letters, anchor="lm")
    return image
