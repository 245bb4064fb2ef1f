"""Concept indices with made-up concepts over small real corpora, for the tests of the balance step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance.selection import Candidates
from onevision.concepts.index import ConceptPart, write_concept_part, write_master
from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.ranks import Ranks
from onevision.recipe import ConceptRecipe, DataRecipe, Recipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records

CONCEPTS = 40


def draw_concepts(samples: int, concepts: int, seed: int, most: int = 4) -> list[NDArray[np.int32]]:
    """Up to `most` different concepts for each sample; low numbers are frequent (Zipf)."""
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, concepts + 1)
    return [
        random.choice(concepts, random.integers(most + 1), replace=False, p=share / share.sum()).astype(np.int32)
        for _ in range(samples)
    ]


def concept_part(
    lists: Sequence[NDArray[np.int32]],
    embedding: NDArray[Any] | None = None,
    hashes: Sequence[Sequence[int]] | None = None,
) -> ConceptPart:
    """A part of a concept index: the concepts of each sample, its embedding and the hashes of its images."""
    hashes = hashes or [[] for _ in lists]
    concept = np.concatenate([*lists, np.empty(0, np.int32)])
    return ConceptPart(
        matches=np.array([len(values) for values in lists], np.uint16),
        concept=concept.astype(np.int32),
        score=np.linspace(1, 0, len(concept), dtype=np.float32),
        image_hash_count=np.array([len(values) for values in hashes], np.uint16),
        image_hash=np.array([value for values in hashes for value in values], np.uint64),
        embedding=embedding,
    )


def write_index(folder: Path, parts: Sequence[ConceptPart], corpus: str, concepts: int = CONCEPTS) -> Path:
    """Write a concept index of these parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(parts):
        write_concept_part(folder, k, part)
    embedding = parts[0].embedding
    attributes = {
        "concepts": concepts,
        "dimension": 0 if embedding is None else embedding.shape[1],
        "top_k": 4,
        "min_score": 0.0,
        "image_hashes": int(any(len(part.image_hash) for part in parts)),
        "match": "substring" if embedding is None else "embedding",
        "search": "exact",
        "corpus": corpus,
        "vocabulary": "made up",
        "encoder": "",
    }
    write_master(folder, len(parts), attributes)
    return folder


def small_recipe(folder: Path, records: int = 47, shard_samples: int = 7, seed: int = 0, **settings: Any) -> Recipe:
    """A recipe over a real corpus of `records` records, in folder/corpus, and a concept index in folder/concepts."""
    tiny_tokenizer(folder / "tokenizer")
    write_records(folder / "source", [sample_record(i, images=i % 3) for i in range(records)])
    data = DataRecipe(
        source=str(folder / "source"),
        tokenizer=str(folder / "tokenizer"),
        shard_samples=shard_samples,
        corpus=str(folder / "corpus"),
        packs=str(folder / "packs"),
    )
    build_corpus(data, folder / "corpus", report=lambda line: None)
    corpus = CorpusIndex.open(folder / "corpus")
    lists = draw_concepts(records, CONCEPTS, seed)
    edges = np.cumsum([0, *(len(piece) for piece in corpus.shard.pieces)]).tolist()
    parts = [concept_part(lists[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    index = write_index(folder / "concepts", parts, corpus.fingerprint)
    return Recipe(data=data, concepts=ConceptRecipe(index=str(index), **settings))


def duplicated_recipe(folder: Path, records: int, shard_samples: int, **settings: Any) -> Recipe:
    """As `small_recipe`, with embeddings and image hashes, of which about one in five is near to an earlier one."""
    recipe = small_recipe(folder, records, shard_samples, **settings)
    corpus = CorpusIndex.open(folder / "corpus")
    random = np.random.default_rng(5)
    embedding = random.normal(size=(records, 16))
    hashes = [[int(value) for value in random.integers(1, 2**63, i % 3)] for i in range(records)]
    lists = draw_concepts(records, CONCEPTS, seed=0)
    for row in random.permutation(records)[: records // 5].tolist():
        earlier = int(random.integers(row)) if row else 0
        if row % 2:
            embedding[row] = embedding[earlier] + random.normal(scale=0.02, size=16)
            lists[row] = lists[earlier]
        else:
            hashes[row] = [value ^ 1 << int(random.integers(63)) for value in hashes[earlier]]
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    edges = np.cumsum([0, *(len(piece) for piece in corpus.shard.pieces)]).tolist()
    parts = [
        concept_part(lists[a:b], embedding[a:b].astype(np.float16), hashes[a:b])
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    write_index(folder / "concepts", parts, corpus.fingerprint)
    return recipe


def with_concepts(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of its concepts."""
    return replace(recipe, concepts=replace(recipe.concepts, **settings))


class Parts:
    """Parts of a concept index that lie in memory."""

    def __init__(self, parts: Sequence[ConceptPart], concepts: int) -> None:
        self.parts, self.concepts = parts, concepts

    def part(self, k: int) -> ConceptPart:
        return self.parts[k]


def candidates(
    lists: Sequence[NDArray[np.int32]], ids: NDArray[np.uint64], concepts: int, parts: int = 3, **others: Any
) -> Candidates:
    """Samples in memory, cut into parts."""
    edges = [len(lists) * k // parts for k in range(parts + 1)]
    cut = [concept_part(lists[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    none = np.zeros(len(lists), np.int16)
    values: dict[str, Any] = {"language": none, "source": none, "languages": ("en",), "sources": ("web",), **others}
    return Candidates(Parts(cut, concepts), np.array(edges), lambda k: ids[edges[k] : edges[k + 1]], **values)


class Thread(Ranks):
    """A rank that is a thread, to be several in one process."""

    def __init__(self, rank: int, size: int, shared: dict[str, Any]) -> None:
        self._communicator, self.rank, self.size, self._shared = None, rank, size, shared
        self.sent = 0

    def gather(self, value: Any) -> list[Any]:
        self._shared["slots"][self.rank] = value
        self._shared["barrier"].wait()
        found = list(self._shared["slots"])
        self._shared["barrier"].wait()
        return found

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        self.sent += values.nbytes
        return np.sum(self.gather(values), axis=0)


def as_threads(size: int, work: Callable[[Thread], Any]) -> list[Any]:
    """What `work` gives each of `size` ranks, which are threads."""
    shared: dict[str, Any] = {"slots": [None] * size, "barrier": threading.Barrier(size, timeout=60)}
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [Thread(rank, size, shared) for rank in range(size)]))
