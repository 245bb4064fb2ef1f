"""The loader beside what bounds it: `python -m benchmarks.data.loader`.

The corpus: crops of photographs in several sizes as JPEG, each with a question and an answer of some hundred tokens of
English prose, packed to 8,192 tokens; about nine samples a pack.

- Reading: what the loader does to have the verified bytes of a sample (one read, content hash) beside a bare loop of
  `os.pread` over the same byte ranges in the same order, by as many threads. The goal is for a cold page cache, where a
  disk is the limit. With a warm one a bare read is no more than a copy within memory; that row has no goal. Nor has
  that of the whole loader without decoding of images: most of the time it turns text into tokens.
- Decoding: the loader as training uses it, beside its own decoder on the same images, which lie in memory, with the
  same number of threads, into one array a thread. The rows a core-second count the processor time of all threads,
  which other work on the machine changes less.

Figures are the best of several alternating runs: other work on the machine only ever makes one slower.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data as photographs

from benchmarks.results import Row, package_versions, show, write_results
from onevision.corpus.build import build_corpus
from onevision.corpus.reader import Entry
from onevision.data.buffers import Buffers
from onevision.data.decode import ImageDecoder, image_decoder
from onevision.data.image import MERGE, PATCH_VALUES, ImageError
from onevision.data.loader import CPU, PackLoader
from onevision.data.patcher import HostPatcher
from onevision.data.tokenizer import load_tokenizer
from onevision.demo.tokenizer import build_tokenizer
from onevision.packing.build import build_packs
from onevision.recipe import DataRecipe
from onevision.training.inputs import open_sources

SAMPLES = 1_500
SIZES = ((640, 480), (512, 512), (800, 600), (1024, 768), (480, 640), (900, 400))
CAPTION = 900  # characters
BATCH = 4  # packs a step
REPEATS = 5
READERS = 4  # threads that read
DECODED = 30  # steps
GOAL = 0.9
T = TypeVar("T")


class NoDecoder:
    """A decoder that does nothing: patches are memory as it was found."""

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: NDArray[np.float32]
    ) -> list[ImageError | None]:
        return [None] * len(images)


def with_decoder(loader: PackLoader, decoder: ImageDecoder) -> PackLoader:
    """The loader with another decoder."""
    loader.patcher = HostPatcher(decoder, CPU, loader.data.sequence_length * MERGE**2)
    return loader


def rows(samples: int = SAMPLES, repeats: int = REPEATS) -> list[Row]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="onevision-loader-", dir=Path.cwd()) as folder:
        data = make_corpus(Path(folder), samples)
        found = reading(data, repeats)
        for threads in (1, 2):
            found += decoding(data, threads, repeats)
    return found


def make_corpus(root: Path, samples: int) -> DataRecipe:
    """Corpus and packs of photographs below `root`."""
    random_numbers = random.Random(0)
    pictures = [photographs.astronaut(), photographs.coffee(), photographs.chelsea(), photographs.rocket()]
    large = [np.asarray(Image.fromarray(picture).resize((1600, 1200))) for picture in pictures]
    prose = " ".join(" ".join(topics.values()).split())
    (root / "records" / "images").mkdir(parents=True)
    with (root / "records" / "records.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(samples):
            width, height = SIZES[number % len(SIZES)]
            x, y = random_numbers.randrange(1600 - width + 1), random_numbers.randrange(1200 - height + 1)
            crop = Image.fromarray(large[number % len(large)][y : y + height, x : x + width])
            crop.save(root / "records" / f"images/{number}.jpg", quality=90)
            start = random_numbers.randrange(len(prose) - CAPTION)
            question = [{"type": "image"}, {"type": "text", "text": "Describe the picture in detail."}]
            answer = [{"type": "text", "text": prose[start : start + CAPTION].replace("<|", "")}]
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            record = {"id": str(number), "images": [f"images/{number}.jpg"], "messages": turns, "category": "photo"}
            lines.write(json.dumps({**record, "language": "en", "source": "bench", "license": "CC0-1.0"}) + "\n")
    data = DataRecipe(
        source=str(root / "records"),
        corpus=str(root / "corpus"),
        packs=str(root / "packs"),
        tokenizer=str(root / "tokenizer"),
        shard_samples=200,
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        build_tokenizer(Path(data.source), Path(data.tokenizer), vocab_size=16_384)
        build_corpus(data, data.corpus)
        build_packs(data, data.packs)
    return data


def loader_of(data: DataRecipe) -> PackLoader:
    """A loader of one rank."""
    tokenizer = load_tokenizer(data.tokenizer)
    return PackLoader(open_sources(data), tokenizer, data, seed=0, global_batch_size=BATCH, micro_batch_size=1)


def steps_of(loader: PackLoader) -> range:
    """As many steps as there are whole ones in an epoch."""
    return range(loader.mixture.packs[0] // BATCH)


def entries_in_order(loader: PackLoader) -> list[Entry]:
    """The samples of an epoch as the loader reads them."""
    packs = [pack for step in steps_of(loader) for micro in loader._micro_batches(step) for pack in micro]
    return [entry for pack in packs for _, entry in loader._entries(*pack)]


def spans_of(entries: list[Entry]) -> list[tuple[str, int, int]]:
    """Shard, offset and bytes of each sample: from its first member to the end of its last."""
    spans = []
    for entry in entries:
        members = (entry.text, *entry.images)
        start = min(members)[0]
        spans.append((entry.shard, start, sum(max(members)) - start))
    return spans


def best(repeats: int, *runs: Callable[[], float]) -> list[float]:
    """Shortest time of each, in seconds; they take turns."""
    times = [[run() for run in runs] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def reading(data: DataRecipe, repeats: int) -> list[Row]:
    """The loader without decoding beside raw reads, with a cold and a warm page cache."""
    loader = with_decoder(loader_of(replace(data, workers=READERS)), NoDecoder())
    corpus = loader.sources.sources[0].corpus
    entries = entries_in_order(loader)
    spans = spans_of(entries)
    shards = {name: os.open(Path(data.corpus) / name, os.O_RDONLY) for name in corpus.index.shards}

    def forget() -> None:
        for descriptor in shards.values():
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def raw(span: tuple[str, int, int]) -> None:
        shard, offset, size = span
        os.pread(shards[shard], size, offset)

    def whole() -> None:
        for _ in loader.iterate(0, len(steps_of(loader))):
            pass

    def cold(call: Callable[[], object]) -> float:
        forget()
        return timed(call)

    raws = {threads: shared(raw, spans, threads) for threads in (1, READERS)}
    reads = {threads: shared(corpus.members, entries, threads) for threads in (1, READERS)}
    calls = (raws[READERS], reads[READERS], whole)
    cold_raw, cold_reads, cold_whole = best(repeats, *(partial(cold, call) for call in calls))
    raws[1]()
    warm_raw, warm_reads = best(repeats, partial(timed, raws[1]), partial(timed, reads[1]))
    for descriptor in shards.values():
        os.close(descriptor)
    count, megabytes = len(spans), sum(size for *_, size in spans) / 1e6

    def row(measure: str, seconds: float, reference: str, reference_seconds: float, goal: bool = False) -> list[Row]:
        met = not goal or reference_seconds / seconds >= GOAL
        text = ">= 90 % of raw reads" if goal else ""
        return [
            Row("loader", measure, amount / seconds, unit, reference, amount / reference_seconds, text, met)
            for amount, unit in ((count, "samples/s"), (megabytes, "MB/s"))
        ]

    several = f"{READERS} threads, cold cache"
    return [
        *row(f"verified bytes, {several}", cold_reads, f"os.pread, {several}", cold_raw, goal=True),
        *row("verified bytes, 1 thread, warm cache", warm_reads, "os.pread, 1 thread, warm cache", warm_raw),
        *row(f"all but image decoding, {several}", cold_whole, f"os.pread, {several}", cold_raw),
    ]


def shared(call: Callable[[T], object], items: list[T], threads: int) -> Callable[[], object]:
    """A run of `call` over all items by some threads, which take turns along the list."""

    def run_part(part: int) -> None:
        for item in items[part::threads]:
            call(item)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run_part, range(threads)))

    return run


def decoding(data: DataRecipe, threads: int, repeats: int) -> list[Row]:
    """The loader as training uses it beside its decoder alone, with as many threads."""
    loader = loader_of(replace(data, workers=threads))
    steps = steps_of(loader)[:DECODED]
    batches = list(images_of(loader, steps))
    images = sum(len(files) for files, _ in batches)

    def decode(batch: tuple[list[bytes], list[tuple[int, int]]]) -> None:
        files, grids = batch
        out = memory.take(sum(height * width for height, width in grids))
        assert decoder.patches(files, grids, out) == [None] * len(files)

    def whole() -> None:
        for _ in loader.iterate(0, len(steps)):
            pass

    decoder = image_decoder(data.decoder)
    memory = Buffers(data.sequence_length * MERGE**2, PATCH_VALUES)
    alone = shared(decode, batches, threads)
    processor: dict[Callable[[], object], list[float]] = {alone: [], whole: []}

    def measured(call: Callable[[], object]) -> float:
        began = time.process_time()
        seconds = timed(call)
        processor[call].append(time.process_time() - began)
        return seconds

    wall = best(repeats, partial(measured, alone), partial(measured, whole))
    used = [min(processor[alone]), min(processor[whole])]
    name = f"loader with decoding, {threads} thread{'s' * (threads > 1)}"
    goal = ">= 90 % of the image path alone"
    return [
        Row("loader", name, images / mine, unit, "decoder alone", images / peer, goal, peer / mine >= GOAL)
        for unit, (peer, mine) in (("images/s", wall), ("images a core-second", used))
    ]


def images_of(loader: PackLoader, steps: range) -> Iterator[tuple[list[bytes], list[tuple[int, int]]]]:
    """Image files and grids of every batch of some steps."""
    for step in steps:
        for micro in loader._micro_batches(step):
            samples = [sample for pack in micro for sample in loader._entries(*pack)]
            corpus = loader.sources.sources[0].corpus
            files = [image for _, entry in samples for image in corpus.read(entry).images]
            yield files, [grid for sample in samples for grid in loader._outline(*sample).grids]


def main(quick: bool = False) -> list[Row]:
    """Measure, write benchmarks/results/loader.json, and print; a quick run measures little and writes nothing."""
    found = rows(samples=90, repeats=2) if quick else rows()
    if not quick:
        versions = package_versions("numpy", "numba", "simplejpeg", "pillow", "tokenizers", "xxhash", "fsspec")
        print(f"written to {write_results('loader', found, versions)}")
    show("loader", found)
    return found


if __name__ == "__main__":
    main(quick="quick=1" in sys.argv[1:])
