"""Synthetic concept indices of any size, and the corpus index that belongs to a small one.

A concept's number is its rank: of C concepts the one of rank r (from 1) is drawn with the share log(1 + 1/r) /
log(C + 1), which is Zipf's law with exponent 1. A sample has ten different concepts, in one of two ways:

    independent  each is drawn for itself
    topical      the sample has a topic, drawn in the same way; each concept is, with equal chances, drawn for itself or
                 near the topic: at its rank times 4^v with v uniform in (-1, 1)

So a rare concept of a topical sample is seldom alone, as neighbours in an embedding are of a kind; independent samples
are the hardest case, in which every rare concept drags nine frequent ones along.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.concepts.index import ConceptPart, write_concept_part, write_master
from onevision.corpus.index import IMAGES
from onevision.corpus.join import join_parts
from onevision.corpus.part import PART_SAMPLES, part_name, write_columns

CONCEPTS = 500_000
TOP_K = 10
KINDS = ("independent", "topical")


@numba.njit(cache=True, nogil=True)
def _draw(seed: int, concepts: int, topical: bool, found: Any) -> None:
    np.random.seed(seed)
    scale = np.log(concepts + 1.0)
    for row in range(found.shape[0]):
        topic = np.exp(np.random.random() * scale)
        k = 0
        while k < found.shape[1]:
            if topical and np.random.random() < 0.5:
                rank = topic * 4.0 ** (2.0 * np.random.random() - 1.0)
            else:
                rank = np.exp(np.random.random() * scale)
            concept = int(rank) - 1
            fresh = 0 <= concept < concepts
            for other in range(k):
                fresh = fresh and found[row, other] != concept
            if fresh:
                found[row, k] = concept
                k += 1


def write_index(folder: Path, sizes: Sequence[int], kind: str, corpus: str = "synthetic") -> None:
    """Write a concept index with parts of these sizes; on two threads, a part in memory for each."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(k: int) -> None:
        concept = np.empty((sizes[k], TOP_K), np.int32)
        _draw(k, CONCEPTS, kind == "topical", concept)
        score = np.tile(np.linspace(0.9, 0.5, TOP_K, dtype=np.float32), sizes[k])
        none = np.zeros(sizes[k], np.uint16)
        part = ConceptPart(none + np.uint16(TOP_K), concept.ravel(), score, none, np.empty(0, np.uint64), None)
        write_concept_part(folder, k, part)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(len(sizes))))
    attributes = {"concepts": CONCEPTS, "dimension": 0, "top_k": TOP_K, "min_score": -1.0, "image_hashes": 0}
    names = {"match": "substring", "search": "exact", "corpus": corpus, "vocabulary": "synthetic", "encoder": ""}
    write_master(folder, len(sizes), {**attributes, **names})


def write_corpus(folder: Path, sizes: Sequence[int]) -> str:
    """Write a corpus index without shards, an image a sample, with parts of these sizes; returns its fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    first = 0
    for k, size in enumerate(sizes):
        rows = np.arange(first, first + size)
        first += size
        columns: dict[str, NDArray[Any]] = {
            f"samples/{name}": random.integers(0, 1000, size).astype(dtype) for name, dtype in PART_SAMPLES.items()
        }
        columns |= {f"images/{name}": random.integers(1, 1000, size).astype(dtype) for name, dtype in IMAGES.items()}
        columns |= {
            "samples/id": np.char.mod("%012d", rows).astype("S12"),
            "samples/id_hash": random.integers(0, 2**64, size, np.uint64),
            "samples/image_count": np.ones(size, np.int32),
            "samples/shard": np.full(size, k, np.int32),
        }
        columns |= {f"samples/{name}": np.zeros(size, np.int16) for name in ("category", "license")}
        columns |= {f"samples/{name}": (rows * 8 // sum(sizes)).astype(np.int16) for name in ("language", "source")}
        names = [b"value-%d" % number for number in range(8)]
        tables = {f"tables/{name}": np.array(names) for name in ("category", "language", "source", "license")}
        write_columns(folder / part_name(k), f"unit {k}", columns, tables, b"")
    known = [{"shard_bytes": 0, "source": ""} for _ in sizes]
    made = {"tokenizer": "", "template": "", "min_pixels": 0, "max_pixels": 0}
    return str(join_parts(folder, known, made)["fingerprint"])
