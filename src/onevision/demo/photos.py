"""Photographs that scikit-image and scikit-learn ship, as crops at native resolution.

Only files whose licence is stated as free are used: scikit-image states it in the docstrings of `skimage.data`,
scikit-learn in `sklearn/datasets/images/README.txt`. So coins, ihc, moon, page and motorcycle stay out.
Training and held-out crops come from disjoint regions.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
import sklearn
from PIL import Image

from onevision.corpus.record import Record
from onevision.demo.draw import Draw, Origin, Turn, jpeg

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the photograph
PUBLIC_DOMAIN = "LicenseRef-public-domain"


class View(NamedTuple):
    """What a part of a photograph shows, and where it may be cut for either split."""

    file: str
    names: dict[str, str]
    train: Box
    heldout: Box
    colour: bool = True


PHOTOGRAPHS = {
    "brick.png": Origin("scikit-image brick.png (CC0Textures)", "CC0-1.0"),
    "grass.png": Origin("scikit-image grass.png (CC0Textures)", "CC0-1.0"),
    "gravel.png": Origin("scikit-image gravel.png (CC0Textures)", "CC0-1.0"),
    "chelsea.png": Origin("scikit-image chelsea.png (Stefan van der Walt)", "CC0-1.0"),
    "coffee.png": Origin("scikit-image coffee.png (Rachel Michetti)", "CC0-1.0"),
    "retina.jpg": Origin("scikit-image retina.jpg (Mikael Häggström)", "CC0-1.0"),
    "astronaut.png": Origin("scikit-image astronaut.png (NASA)", PUBLIC_DOMAIN),
    "hubble_deep_field.jpg": Origin("scikit-image hubble_deep_field.jpg (NASA)", PUBLIC_DOMAIN),
    "text.png": Origin("scikit-image text.png (Wikipedia File:Corner.png)", PUBLIC_DOMAIN),
    "china.jpg": Origin("scikit-learn china.jpg (danielbuechele)", "CC-BY-2.0"),
    "flower.jpg": Origin("scikit-learn flower.jpg (vultilion)", "CC-BY-2.0"),
}
VIEWS = (
    View("brick.png", {"en": "brick", "zh": "砖墙"}, (0, 0, 360, 512), (362, 0, 512, 512), colour=False),
    View("grass.png", {"en": "grass", "zh": "草地"}, (0, 0, 360, 512), (362, 0, 512, 512), colour=False),
    View("gravel.png", {"en": "gravel", "zh": "碎石"}, (0, 0, 360, 512), (362, 0, 512, 512), colour=False),
    View("text.png", {"en": "writing", "zh": "字迹"}, (0, 0, 300, 172), (302, 0, 448, 172), colour=False),
    View("chelsea.png", {"en": "cat", "zh": "猫"}, (40, 0, 250, 300), (252, 0, 372, 200)),
    View("coffee.png", {"en": "cup", "zh": "杯子"}, (90, 60, 300, 380), (302, 20, 440, 350)),
    View("coffee.png", {"en": "wood", "zh": "木头"}, (485, 110, 600, 400), (0, 150, 84, 400)),
    View("retina.jpg", {"en": "eye", "zh": "眼底"}, (300, 250, 850, 1150), (860, 300, 1200, 1100)),
    View("astronaut.png", {"en": "spacesuit", "zh": "太空服"}, (30, 250, 225, 512), (228, 250, 350, 390)),
    View("hubble_deep_field.jpg", {"en": "stars", "zh": "星空"}, (0, 0, 700, 872), (702, 0, 1000, 872)),
    View("china.jpg", {"en": "temple", "zh": "寺庙"}, (100, 110, 225, 340), (227, 60, 340, 340)),
    View("china.jpg", {"en": "sky", "zh": "天空"}, (0, 0, 160, 105), (342, 0, 560, 120)),
    View("china.jpg", {"en": "trees", "zh": "树木"}, (360, 290, 640, 427), (0, 310, 98, 427)),
    View("flower.jpg", {"en": "flower", "zh": "花"}, (180, 100, 310, 340), (312, 100, 430, 340)),
    View("flower.jpg", {"en": "leaves", "zh": "叶子"}, (0, 0, 150, 427), (470, 0, 640, 320)),
)
# (width, height) of a crop in pixels.
CROPS = ((56, 56), (84, 56), (56, 84), (84, 84), (70, 60), (75, 90), (80, 112), (100, 84), (112, 84))

WHAT = {
    "en": ("What does the photo show?", "What is in this photo?"),
    "zh": ("照片里是什么？", "这张照片拍的是什么？"),
}
COLOUR = {
    "en": ("Is it a colour photo?", "Is the photo in colour?"),
    "zh": ("这是彩色照片吗？", "照片是彩色的吗？"),
}
YES = {"en": ("no", "yes"), "zh": ("否", "是")}
COLOUR_SHARE = 0.2


def photos_record(draw: Draw) -> Record:
    """What one to three crops show, one a turn; some are also asked whether the photograph is in colour."""
    rng = draw.rng()
    views = [VIEWS[number % len(VIEWS)] for number in draw.items()]
    crops = [jpeg(_crop(view, draw.heldout, rng)) for view in views]
    question = draw.phrase(WHAT)
    names = [view.names[draw.language] for view in views]
    turns = [Turn((crop,), question, name) for crop, name in zip(crops, names, strict=True)]
    if len(views) == 1 and rng.random() < COLOUR_SHARE:
        turns.append(Turn((), draw.phrase(COLOUR), YES[draw.language][views[0].colour]))
    return draw.record(turns, [PHOTOGRAPHS[view.file] for view in views])


@cache
def _photograph(file: str) -> Image.Image:
    package = Path(sklearn.__file__).parent / "datasets" / "images"
    if not (package / file).exists():
        package = Path(skimage.__file__).parent / "data"
    with Image.open(package / file) as image:
        return image.convert("RGB")


def _crop(view: View, heldout: bool, rng: np.random.Generator) -> Image.Image:
    left, top, right, bottom = view.heldout if heldout else view.train
    fitting = [(w, h) for w, h in CROPS if w <= right - left and h <= bottom - top]
    width, height = fitting[rng.integers(len(fitting))]
    x = int(rng.integers(left, right - width + 1))
    y = int(rng.integers(top, bottom - height + 1))
    return _photograph(view.file).crop((x, y, x + width, y + height))
