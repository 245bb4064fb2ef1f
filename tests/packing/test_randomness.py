"""The order of packs and of samples in them looks random: permutation tests on neighbouring packs.

What is measured: the lag-1 autocorrelation, in the order of `packs.h5`, of each pack's longest sample and number of
samples (both follow the lengths), tokens of each source, and samples of each category. The corpus is as unfavourable as
can be: sources and categories are blocks of neighbouring rows. Shuffling the same packs 200 times gives mean and
spread of the autocorrelation of a random order, which is normal for so many packs. The order of the file is not
distinguishable from a random one when its own autocorrelation is within that spread: a two-sided test at 1 % over all
measures together (Bonferroni), with fixed seeds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.packing.synthetic import Lengths, attributes, write
from onevision.corpus.hdf5 import Column
from onevision.packing.build import pack_corpus
from onevision.packing.draws import stream
from onevision.packing.index import PackIndex
from onevision.packing.solver import solve
from onevision.recipe import DataRecipe

SAMPLES = 200_000
SHUFFLES = 200
SIGNIFICANCE = 0.01


def significance(values: np.ndarray, random: np.random.Generator) -> float:
    """How probable it is that a random order has an autocorrelation as far from that of random orders: a p-value."""
    standard = (values - values.mean()) / values.std()
    others = []
    for _ in range(SHUFFLES):
        order = random.permutation(standard)
        others.append(np.mean(order[:-1] * order[1:]))
    distance = (np.mean(standard[:-1] * standard[1:]) - np.mean(others)) / np.std(others)
    return math.erfc(abs(distance) / math.sqrt(2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Lengths:
    folder = tmp_path_factory.mktemp("lengths")
    write(folder, SAMPLES)
    blocks = np.arange(SAMPLES) * 6 // SAMPLES
    return replace(Lengths.open(folder), category=Column([blocks.astype(np.int16)]))


def measures(index: PackIndex, corpus: Lengths) -> dict[str, np.ndarray]:
    """What is measured of each pack, by name."""
    rows, start = np.asarray(index.sample), index.pack_start[:-1]
    lengths = (corpus.text_tokens[rows] + corpus.vision_tokens[rows]).astype(np.int64)
    found = {"longest": np.maximum.reduceat(lengths, start), "samples": np.diff(index.pack_start)}
    source, category = corpus.source[rows], corpus.category[rows]
    for number in range(len(corpus.sources)):
        found[f"source {number}"] = np.add.reduceat(np.where(source == number, lengths, 0), start)
    for number in range(len(corpus.categories)):
        found[f"category {number}"] = np.add.reduceat((category == number).astype(np.int64), start)
    return found


@pytest.mark.parametrize("settings", [{}, {"max_patches": 26_000}], ids=["tokens", "bounds"])
@pytest.mark.parametrize("part_samples", [1_000_000, 50_000])
def test_neighbouring_packs_are_not_alike(
    corpus: Lengths, settings: dict[str, int], part_samples: int, tmp_path: Path
) -> None:
    data = DataRecipe(pack_part_samples=part_samples, **settings)
    own = attributes(SAMPLES, data.sequence_length, part_samples=part_samples, **settings)
    pack_corpus(corpus, own, data, tmp_path / "packs")  # type: ignore[arg-type]
    found = measures(PackIndex.open(tmp_path / "packs"), corpus)
    random = np.random.default_rng(0)
    p_values = {name: significance(values, random) for name, values in found.items()}
    assert min(p_values.values()) * len(p_values) > SIGNIFICANCE, p_values


def test_samples_of_one_length_come_in_random_order(corpus: Lengths) -> None:
    """The rows of one length, in the order of the packs, are not correlated with their place: Spearman, 1 %."""
    lengths = np.asarray(corpus.text_tokens) + np.asarray(corpus.vision_tokens)
    _, sample = solve(lengths, 8192, stream(1))
    most = np.bincount(lengths).argmax()
    rows = sample[lengths[sample] == most].astype(np.int64)
    assert len(rows) > 300
    assert significance(rows, np.random.default_rng(0)) > SIGNIFICANCE
    place = np.arange(len(rows))
    assert abs(np.corrcoef(place, rows.argsort().argsort())[0, 1]) < 2.58 / np.sqrt(len(rows))


def test_the_measure_sees_an_order_that_is_not_random(corpus: Lengths, tmp_path: Path) -> None:
    """Packs that are sorted a hundred at a time by what they have of a source."""
    own = attributes(SAMPLES, 8192)
    pack_corpus(corpus, own, DataRecipe(), tmp_path / "packs")  # type: ignore[arg-type]
    values = measures(PackIndex.open(tmp_path / "packs"), corpus)["source 0"]
    random = np.random.default_rng(0)
    assert significance(values, random) > SIGNIFICANCE
    slightly = np.concatenate([np.sort(values[first : first + 100]) for first in range(0, len(values), 100)])
    assert significance(slightly, random) < SIGNIFICANCE / 16
