"""The pack step on a small real corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.data.schedule import PATCH_COST
from onevision.errors import DataError, InputError
from onevision.packing.build import build_packs
from onevision.packing.index import FILE, PackIndex
from onevision.recipe import DataRecipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records

SAMPLES = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    """A corpus of samples with none to two images and one to three turns."""
    root = tmp_path_factory.mktemp("corpus")
    tiny_tokenizer(root / "tokenizer")
    write_records(root / "records", [sample_record(i, images=i % 3, turns=1 + i % 2) for i in range(SAMPLES)])
    data = DataRecipe(
        source=str(root / "records"), corpus=str(root / "corpus"), tokenizer=str(root / "tokenizer"),
        sequence_length=512, reject_threshold=0.1,
    )  # fmt: skip
    build_corpus(data, data.corpus)
    return data


def contents(folder: Path) -> dict[str, bytes | str]:
    """The files of a step; the master, in which HDF5 writes the time, by its fingerprint."""
    files = [path for path in folder.iterdir() if path.name not in ("step.json", FILE)]
    return {path.name: path.read_bytes() for path in files} | {FILE: PackIndex.open(folder).fingerprint}


def test_every_sample_once_and_columns_that_say_what_is_in_a_pack(data: DataRecipe, tmp_path: Path) -> None:
    lines: list[str] = []
    result = build_packs(data, tmp_path / "packs", report=lines.append)
    corpus, index = CorpusIndex.open(data.corpus), PackIndex.open(tmp_path / "packs")
    assert np.array_equal(np.sort(index.sample), np.arange(SAMPLES))
    for pack in range(index.packs):
        rows = index.samples_of(pack)
        lengths = corpus.lengths[rows].astype(int)
        assert index.tokens[pack] == lengths.sum() <= 512
        assert index.patches[pack] == corpus.patches[rows].sum()
        assert index.attention_cost[pack] == (lengths**2).sum()
    summary = result.summary
    real = int(corpus.lengths.sum())
    assert (summary["samples"], summary["overlong"], summary["packs"]) == (SAMPLES, 0, index.packs)
    assert summary["tokens"] == real
    assert summary["fill"] == real / (index.packs * 512)
    assert summary["lower_bound_packs"] == -(-real // 512) <= index.packs
    assert summary["mean_samples_per_pack"] == SAMPLES / index.packs
    assert summary["fingerprint"] == index.fingerprint
    for name, count in (("length_histogram", SAMPLES), ("fill_histogram", index.packs)):
        histogram = summary[name]
        assert sum(histogram["counts"]) == count
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert len(lines) == 1 and f"{SAMPLES} samples in {index.packs} packs" in lines[0]


def test_same_inputs_same_bytes_and_nothing_to_do_the_second_time(data: DataRecipe, tmp_path: Path) -> None:
    first, other = build_packs(data, tmp_path / "a"), build_packs(data, tmp_path / "b")
    assert first.summary == other.summary
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not first.skipped
    assert build_packs(data, tmp_path / "a").skipped
    reseeded = build_packs(replace(data, pack_seed=1), tmp_path / "a")
    assert not reseeded.skipped
    assert reseeded.summary["fingerprint"] != first.summary["fingerprint"]


def test_damaged_packs_are_made_again(data: DataRecipe, tmp_path: Path) -> None:
    output = tmp_path / "packs"
    whole = build_packs(data, output).summary
    (output / FILE).write_bytes((output / FILE).read_bytes()[:1000])
    lines: list[str] = []
    again = build_packs(data, output, report=lines.append)
    assert not again.skipped and again.summary == whole
    assert lines[0].startswith(f"the packs are made again: {output / FILE} is damaged")
    PackIndex.open(output)


def test_overlong_samples_are_left_out_and_listed(data: DataRecipe, tmp_path: Path) -> None:
    corpus = CorpusIndex.open(data.corpus)
    limit = int(np.sort(corpus.lengths)[-4])
    long = np.flatnonzero(corpus.lengths > limit)
    assert 1 <= len(long) <= 3
    summary = build_packs(replace(data, sequence_length=limit), tmp_path / "packs").summary
    assert summary["overlong"] == len(long)
    assert summary["samples"] == SAMPLES - len(long)
    index = PackIndex.open(tmp_path / "packs")
    assert sorted([*index.sample, *long.tolist()]) == list(range(SAMPLES))
    listed = pq.read_table(tmp_path / "packs" / "overlong.parquet").to_pydict()
    ids = [corpus.id[row].decode() for row in long]
    assert listed == {
        "id": ids,
        "length": corpus.lengths[long].tolist(),
        "patches": corpus.patches[long].tolist(),
        "reason": ["sequence_length"] * len(long),
    }


def test_too_many_overlong_samples_fail_and_leave_the_old_packs(data: DataRecipe, tmp_path: Path) -> None:
    output = tmp_path / "packs"
    kept = build_packs(data, output).summary["fingerprint"]
    corpus = CorpusIndex.open(data.corpus)
    long = int((corpus.lengths > 100).sum())
    with pytest.raises(DataError) as caught:
        build_packs(replace(data, sequence_length=100), output)
    message = str(caught.value)
    assert f"{long} of {SAMPLES} samples" in message
    assert f"the longest of them has {corpus.lengths.max()} tokens" in message
    assert f"(data.sequence_length=100: {long})" in message and "data.reject_threshold=0.1" in message
    assert "\n" not in message
    assert PackIndex.open(output).fingerprint == kept
    with pytest.raises(DataError, match="60 of 60 samples"):
        build_packs(replace(data, sequence_length=16, reject_threshold=1.0), output)


def test_a_corpus_of_another_pixel_limit_is_refused(data: DataRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build_packs(replace(data, max_pixels=50_000), tmp_path / "packs")
    assert str(caught.value) == (
        f"{data.corpus}/corpus.h5 was made with max_pixels=2560000, this run has 50000: "
        "run `make corpus` again"
    )
    assert not (tmp_path / "packs").exists()


def test_a_missing_corpus(data: DataRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        build_packs(replace(data, corpus=str(tmp_path / "nothing")), tmp_path / "packs")


def test_bounds_hold_and_what_breaks_them_alone_is_listed(data: DataRecipe, tmp_path: Path) -> None:
    corpus = CorpusIndex.open(data.corpus)
    lengths, patches = np.asarray(corpus.lengths).astype(int), np.asarray(corpus.patches)
    most_patches, most_attention = int(np.sort(patches)[-3]), int(np.sort(lengths)[-2]) ** 2
    bounded = replace(data, max_patches=most_patches, max_attention_cost=most_attention)
    result = build_packs(bounded, tmp_path / "packs")
    index = PackIndex.open(tmp_path / "packs")
    assert np.asarray(index.patches).max() <= most_patches
    assert np.asarray(index.attention_cost).max() <= most_attention
    out = np.flatnonzero((patches > most_patches) | (lengths**2 > most_attention))
    assert 0 < len(out) < 6
    assert sorted([*index.sample, *out]) == list(range(SAMPLES))
    reasons = ["max_patches" if patches[row] > most_patches else "max_attention_cost" for row in out]
    listed = pq.read_table(tmp_path / "packs" / "overlong.parquet").to_pydict()
    assert listed["reason"] == reasons
    assert result.summary["overlong_by_reason"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert result.summary["bounds"] == {
        "sequence_length": 512, "max_patches": most_patches, "max_attention_cost": most_attention
    }  # fmt: skip


def test_the_summary_says_what_the_columns_say(data: DataRecipe, tmp_path: Path) -> None:
    summary = build_packs(replace(data, pack_part_samples=25), tmp_path / "packs").summary
    corpus, index = CorpusIndex.open(data.corpus), PackIndex.open(tmp_path / "packs")
    lengths = np.asarray(corpus.lengths)
    cost = np.asarray(index.attention_cost) + PATCH_COST * np.asarray(index.patches)
    assert summary["compression"]["padded_to_longest"] == SAMPLES * lengths.max() / (index.packs * 512)
    assert summary["compression"]["padded_to_sequence_length"] == SAMPLES / index.packs
    assert summary["cost"]["mean"] == cost.mean() and summary["cost"]["max"] == cost.max() / cost.mean()
    assert summary["largest_packs"][0]["pack"] == cost.argmax()
    for name, names in (("category", corpus.categories), ("source", corpus.sources), ("language", corpus.languages)):
        numbers = np.asarray(getattr(corpus, name))
        tokens = {text: int(lengths[numbers == number].sum()) for number, text in enumerate(names)}
        assert summary[f"{name}_tokens"] == tokens
    for name in ("fill", "samples", "patches", "attention_cost", "cost"):
        histogram = summary[f"{name}_histogram"]
        assert sum(histogram["counts"]) == index.packs
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert sum(summary["length_histogram"]["counts"]) == SAMPLES


def test_one_file_holds_the_same(data: DataRecipe, tmp_path: Path) -> None:
    data = replace(data, pack_part_samples=25)
    parts = build_packs(data, tmp_path / "parts")
    single = build_packs(replace(data, single_file=True), tmp_path / "single")
    assert parts.summary == single.summary
    assert sorted(path.name for path in (tmp_path / "single").iterdir()) == ["overlong.parquet", FILE, "step.json"]
    one, many = PackIndex.open(tmp_path / "single"), PackIndex.open(tmp_path / "parts")
    for name in ("pack_start", "sample", "tokens", "patches", "attention_cost"):
        assert np.array_equal(getattr(one, name), getattr(many, name)), name
    assert one.fingerprint == many.fingerprint
    again = build_packs(replace(data, single_file=True), tmp_path / "parts")
    assert again.skipped and not list((tmp_path / "parts").glob("packs-*"))
    assert (tmp_path / "parts" / FILE).read_bytes() == (tmp_path / "single" / FILE).read_bytes()
