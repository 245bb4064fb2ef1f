"""The loader on a GPU, by each way of the recipe: images resized on the host, on the device, or decoded there too.

    python -m benchmarks.data.device [quick=1] [workers=16]

A corpus of synthetic photographs as JPEG, packed to 8,192 tokens, is read by the loader as training reads it. On a
machine without a GPU the CPU plays its part, which shows that the benchmark runs and nothing else. Of every way, all in
one run:

- images/s from files to patches on the device, with as many threads as cores, beside the host's way;
- what a step waits for its data: a step is a row of matrix products that ends with a look at the result, as training's
  does;
- how long the steps are beside the same steps without a loader: what copies, kernels and threads take away from them.

A way that cannot run here (DALI is not installed, `make cuda` was not run) is a line that says so, not the end.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.results import Row, package_versions, settings, show, write_results
from onevision.corpus.build import build_corpus
from onevision.data.loader import PackLoader
from onevision.data.tokenizer import load_tokenizer
from onevision.demo.tokenizer import build_tokenizer
from onevision.errors import OneVisionError
from onevision.packing.build import build_packs
from onevision.recipe import DataRecipe
from onevision.training.inputs import open_sources

SIZES = ((640, 480), (512, 512), (800, 600), (1024, 768), (480, 640), (900, 400), (1600, 1200))
PHOTOGRAPHS = 70
QUALITY = 90
PACKS = 64  # that are read to count images
STEP = 0.1  # seconds of a step, about
STEPS = 20
MATRIX = 4096
WAYS = {
    "native, resized on the host": {},
    "native, resized on the device": {"resize": "device"},
    "dali_mixed": {"decoder": "dali_mixed", "resize": "device"},
    "dali_mixed without the JPEG hardware": {"decoder": "dali_mixed", "resize": "device", "hw_decoder_load": 0.0},
}


def photograph(number: int, rng: np.random.Generator) -> bytes:
    """Coloured blotches of several scales with a little noise: a file as large as a real photograph's."""
    width, height = SIZES[number % len(SIZES)]
    picture = rng.normal(0, 3, (height, width, 3)).astype(np.float32)
    for blotches in (4, 16, 64, 200):
        coarse = rng.integers(0, 256, (blotches * height // width + 1, blotches, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / np.float32(4)
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def make_corpus(root: Path) -> DataRecipe:
    """Corpus and packs of such photographs below `root`, each with a question and a short answer."""
    rng = np.random.default_rng(0)
    (root / "records" / "images").mkdir(parents=True)
    with (root / "records" / "records.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(PHOTOGRAPHS):
            name = f"images/{number}.jpg"
            (root / "records" / name).write_bytes(photograph(number, rng))
            question = [{"type": "image"}, {"type": "text", "text": "What is shown?"}]
            answer = [{"type": "text", "text": "Blotches of many colours, " * 20}]
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            record = {"id": str(number), "images": [name], "messages": turns, "category": "photo", "language": "en"}
            lines.write(json.dumps({**record, "source": "bench", "license": "CC0-1.0"}) + "\n")
    names = {name: str(root / name) for name in ("corpus", "packs", "tokenizer")}
    data = DataRecipe(source=str(root / "records"), **names)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        build_tokenizer(Path(data.source), Path(data.tokenizer), vocab_size=512)
        build_corpus(data, data.corpus)
        build_packs(data, data.packs)
    return data


class Steps:
    """Steps of matrix products on a device, of about STEP seconds."""

    def __init__(self, device: torch.device) -> None:
        side = MATRIX if device.type == "cuda" else 256
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.factors = torch.randn(2, side, side, device=device).to(dtype) / side**0.5
        self.products = 8
        self.take()  # what is done once
        self.products = max(1, round(8 * STEP / min(self.seconds() for _ in range(3))))

    def take(self) -> float:
        """Compute one; the look at the result waits for it."""
        left, right = self.factors
        for _ in range(self.products):
            left = left @ right
        return float(left[0, 0])

    def seconds(self) -> float:
        """Of one step."""
        began = time.perf_counter()
        self.take()
        return time.perf_counter() - began


def loader_of(data: DataRecipe, device: torch.device) -> PackLoader:
    """A loader of one rank; a step is one pack."""
    options = {"seed": 0, "global_batch_size": 1, "micro_batch_size": 1}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return PackLoader(open_sources(data), load_tokenizer(data.tokenizer), data, device=device, dtype=dtype, **options)


def finished(device: torch.device) -> None:
    """Wait until the device has nothing more to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def images_a_second(loader: PackLoader, packs: int, device: torch.device) -> float:
    """From files to patches on the device."""
    images = 0
    began = time.perf_counter()
    for (batch,) in loader.iterate(0, packs):
        images += len(batch.grid_thw)
    finished(device)
    return images / (time.perf_counter() - began)


def steps_with(loader: PackLoader, steps: Steps, count: int) -> tuple[float, float]:
    """Seconds of a step, and those of them that it waited for its data; the first steps do not count."""
    warm, waited = 3, 0.0
    batches = loader.iterate(0, count + warm)
    for _ in islice(batches, warm):
        steps.take()
    began = time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        steps.take()
    seconds = time.perf_counter() - began
    batches.close()
    return seconds / count, waited / count


def way_rows(name: str, data: DataRecipe, device: torch.device, steps: Steps, packs: int, count: int) -> list[Row]:
    """The figures of one way, beside themselves where the reference is another way's."""
    loader = loader_of(data, device)
    for _ in loader.iterate(0, 2 * max(1, data.workers)):  # compilation, memory, every thread's pipeline
        pass
    finished(device)
    speed = images_a_second(loader, packs, device)
    alone = min(steps.seconds() for _ in range(5))
    step, waited = steps_with(loader, steps, count)
    path, threads, none = f"loader/{name}", f"{data.workers} threads", "none, for comparison"
    beside = ("a step alone", 1e3 * alone)
    return [
        Row(path, f"files to patches on the device, {threads}", speed, "images/s", "itself", speed, none, True),
        Row(path, "a step waits for data", 1e3 * waited, "ms", *beside, "< 1 %", waited < 0.01 * alone),
        Row(path, "a step with the loader", 1e3 * step, "ms", *beside, "< 3 % more", step < 1.03 * alone),
    ]


def rows(
    workers: int = 0,
    quick: bool = False,
    note: Callable[[str], None] = print,
    save: Callable[[list[Row]], None] = lambda found: None,
) -> list[Row]:
    """All figures; what could not be run is told to `note`, and `save` is given the figures so far after each way.

    `workers`: threads, 0: the cores of this machine.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="onevision-device-") as folder:
        data = make_corpus(Path(folder))
        data = replace(data, workers=workers or len(os.sched_getaffinity(0)))
        steps = Steps(device)
        packs, count = (4, 3) if quick else (PACKS, STEPS)
        for name, settings in WAYS.items():
            try:
                found += way_rows(name, replace(data, **settings), device, steps, packs, count)
                save(_beside_the_host(found))
            except OneVisionError as error:
                note(f"not measured: {name}: {error}")
            except Exception:  # one way's failure must not hide the others' figures
                note(f"not measured: {name}: {' | '.join(traceback.format_exc().splitlines()[-3:])}")
    return _beside_the_host(found)


def _beside_the_host(found: list[Row]) -> list[Row]:
    """The rows, with the speed of the first way as the reference of every speed."""
    host = next((row for row in found if row.unit == "images/s"), None)
    if host is None:
        return found
    beside = {"reference": host.path.removeprefix("loader/"), "reference_value": host.value}
    return [replace(row, **beside) if row.unit == "images/s" else row for row in found]


def main(arguments: list[str]) -> int:
    """Measure, print, and on a GPU write benchmarks/results/device.json."""
    given = settings(arguments, "quick", "workers")
    quick = given.get("quick") == "1"
    found = rows(int(given.get("workers", 0)), quick)
    show("the loader on a device", found)
    if torch.cuda.is_available() and not quick:
        versions = package_versions("torch", "numpy", "numba", "simplejpeg", "pillow")
        versions["gpu"] = torch.cuda.get_device_name()
        print(f"written to {write_results('device', found, versions)}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
