"""Image to patches on a core: our decoders against Hugging Face's image processors on the same photographs.

    python -m benchmarks.data.images [PYTHON of the fast processor]

The photographs are those that scikit-image and scikit-learn ship, as JPEG of quality 90; the pixel limits are the
recipe's. Every contender decodes, resizes, normalises and cuts into patches, one image at a time. A figure is images a
second of processor time, the best of some rounds that take turns, so that neighbours on the machine disturb little.

Hugging Face's fast processor needs torchvision: it is measured in a process of the Python that `fast` names (this one,
if none is named), and its row names the versions there.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import sklearn
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.results import Row, package_versions, show, write_results
from onevision.data.decode import ImageDecoder, image_decoder, image_patches
from onevision.data.image import STD
from onevision.errors import InputError
from onevision.recipe import DataRecipe

PATH = "data/images"
UNIT = "images/s"
PHOTOGRAPHS = [
    *(Path(skimage.__file__).parent / "data").glob("*.png"),
    *(Path(skimage.__file__).parent / "data").glob("*.jpg"),
    *(Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"),
]
NAMES = ("astronaut", "chelsea", "coffee", "retina", "hubble_deep_field", "china", "flower")
LIMITS = (DataRecipe.min_pixels, DataRecipe.max_pixels)


def photographs() -> dict[str, bytes]:
    """The photographs as JPEG."""
    found = {}
    for path in PHOTOGRAPHS:
        if path.stem in NAMES:
            buffer = io.BytesIO()
            Image.open(path).convert("RGB").save(buffer, "JPEG", quality=90)
            found[path.stem] = buffer.getvalue()
    assert len(found) == len(NAMES)
    return found


def figures(rounds: int, fast: str) -> tuple[list[Row], dict[str, str]]:
    """The rows, and the versions of what was measured."""
    torch.set_num_threads(1)
    images = photographs()
    processor = Qwen2VLImageProcessorPil(min_pixels=LIMITS[0], max_pixels=LIMITS[1], temporal_patch_size=1)

    def hugging_face(data: bytes) -> np.ndarray:
        return processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]

    def ours(decoder: ImageDecoder) -> Callable[[bytes], np.ndarray]:
        return lambda data: image_patches(data, *LIMITS, decoder)[0]

    contenders = {"Hugging Face, PIL": hugging_face}
    for name in ("native", "pillow", "dali"):
        try:
            contenders[name] = ours(image_decoder(name))
        except InputError as error:
            print(f"left out: {error}")
    speed = speeds(contenders, list(images.values()), rounds)
    reference = "Hugging Face, PIL"
    rows = [_speed("native", speed["native"], reference, speed[reference], 4.0)]
    peer = fast_processor(images, rounds, fast)
    if peer:
        title = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
        best = peer["images"] / min(peer["seconds"].values())
        rows.append(_speed("native", speed["native"], f"Hugging Face, fast ({title})", best, 1.5))
    for name in [name for name in ("pillow", "dali") if name in speed]:
        rows.append(_speed(name, speed[name], reference, speed[reference], None))
    for name in [name for name in ("native", "dali") if name in speed]:
        rows += _differences(name, contenders[name], hugging_face, list(images.values()))
    names = ["numba", "simplejpeg", "pillow", "transformers", "numpy"]
    return rows, package_versions(*names, *(["nvidia-dali-cuda130"] if "dali" in speed else []))


def speeds(contenders: dict[str, Callable[[bytes], np.ndarray]], images: list[bytes], rounds: int) -> dict[str, float]:
    """Images a second of processor time, by contender."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(rounds + 1):  # the first is for compilation and caches
        for name, patches in contenders.items():
            start = time.process_time()
            for data in images:
                patches(data)
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return {name: len(images) / seconds for name, seconds in best.items()}


def fast_processor(images: dict[str, bytes], rounds: int, python: str) -> dict[str, Any] | None:
    """What fast_processor.py prints in the environment of a Python; None, and a line that says so, if it cannot run."""
    with tempfile.TemporaryDirectory(prefix="onevision-images-") as folder:
        for name, data in images.items():
            (Path(folder) / f"{name}.jpg").write_bytes(data)
        command = [python, str(Path(__file__).with_name("fast_processor.py")), folder, *map(str, (*LIMITS, rounds))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"left out: Hugging Face's fast processor does not run in {python} ({last}): name a Python with fast=")
        return None
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def _speed(name: str, value: float, reference: str, reference_value: float, factor: float | None) -> Row:
    goal, met = (f">= {factor:g}x", value >= factor * reference_value) if factor else ("none, for comparison", True)
    return Row(f"{PATH}/{name}", "image to patches on a core", value, UNIT, reference, reference_value, goal, met)


def _differences(
    name: str, ours: Callable[[bytes], np.ndarray], reference: Callable[[bytes], np.ndarray], images: list[bytes]
) -> list[Row]:
    """How far the values are from the reference, in steps of a byte; the worst image counts."""
    scale = 255 * np.repeat(STD, 196)
    steps = [np.abs(ours(data) - reference(data)) * scale for data in images]
    mean, share = max(part.mean() for part in steps), max((part > 1.001).mean() for part in steps)
    path, title = f"{PATH}/{name}", "Hugging Face, PIL"
    return [
        Row(path, "mean difference, worst image", float(mean), "of 255", title, 0.0, "< 0.2", bool(mean < 0.2)),
        Row(path, "values off by more than 1", float(share), "share", title, 0.0, "< 5e-4", bool(share < 5e-4)),
    ]


def main(fast: str = sys.executable, rounds: int = 5) -> list[Row]:
    """Measure, write benchmarks/results/images.json, and print; see the head comment."""
    rows, versions = figures(rounds, fast)
    path = write_results("images", rows, versions)
    show("image to patches", rows)
    print(f"written to {path}")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:2])
