"""The concepts step: right concepts, damage that is counted and never hidden, and the same result again."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from onevision.concepts.build import build_concepts
from onevision.concepts.captions import caption
from onevision.concepts.hashes import image_hash
from onevision.concepts.index import FILE, ConceptIndex, part_file
from onevision.concepts.vocabulary import Vocabulary, build_vocabulary
from onevision.corpus.reader import CorpusReader
from onevision.errors import DataError, InputError
from onevision.recipe import Recipe
from tests.concepts.cases import CAPTIONS, NAMES, SHARD, change, make_recipe, record, write_names
from tests.concepts.tiny_clip import save_tiny_clip
from tests.fixtures import image_bytes

SAMPLES = 23
IMAGES = [(1, 2, 0)[i % 3] for i in range(SAMPLES)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    records = [record(i, images) for i, images in enumerate(IMAGES)]
    return make_recipe(tmp_path_factory.mktemp("concepts"), records)


@pytest.fixture(scope="module")
def nearest(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("nearest") / "concepts"
    build_concepts(recipe, output)
    return output


def concepts_of(index: ConceptIndex) -> list[list[str]]:
    """The names that each sample has."""
    ends = np.cumsum(np.asarray(index.matches, np.int64))
    return [[NAMES[c] for c in index.concept[a:b].tolist()] for a, b in pairwise([0, *ends.tolist()])]


def test_the_nearest_concepts_are_those_of_a_plain_search(recipe: Recipe, nearest: Path) -> None:
    index, vocabulary = ConceptIndex.open(nearest), Vocabulary.open(recipe.concepts.vocabulary)
    assert index.embedding is not None
    scores = np.asarray(index.embedding, np.float64) @ vocabulary.embedding.astype(np.float64).T
    expected = np.argsort(-scores, kind="stable")[:, :3]
    assert np.array_equal(np.reshape(index.concept, (SAMPLES, 3)), expected)
    np.testing.assert_allclose(
        np.reshape(index.score, (SAMPLES, 3)), np.take_along_axis(scores, expected, 1), atol=1e-6
    )
    assert np.array_equal(index.count, np.bincount(np.asarray(index.concept), minlength=len(NAMES)))


def test_concepts_below_the_least_score_are_left_out(recipe: Recipe, nearest: Path, tmp_path: Path) -> None:
    build_concepts(change(recipe, min_score=0.5), tmp_path / "near")
    every, near = ConceptIndex.open(nearest), ConceptIndex.open(tmp_path / "near")
    kept = np.asarray(every.score) >= 0.5
    assert 0 < kept.sum() < len(kept)
    assert np.array_equal(np.asarray(near.concept), np.asarray(every.concept)[kept])
    assert np.array_equal(np.asarray(near.score), np.asarray(every.score)[kept])
    assert np.array_equal(np.asarray(near.matches), kept.reshape(SAMPLES, 3).sum(axis=1))
    assert near.min_score == 0.5


def test_a_person_finds_them_right(nearest: Path) -> None:
    found = concepts_of(ConceptIndex.open(nearest))
    assert [names[0] for names in found[:3]] == ["red apple", "sea lion", "lion"]
    assert found[4][0] == "violin" and sorted(found[5][:2]) == ["bicycle", "lighthouse"]


def test_rows_are_those_of_the_corpus(recipe: Recipe, nearest: Path) -> None:
    index, corpus = ConceptIndex.open(nearest), CorpusReader(recipe.data.corpus)
    assert [len(index.part(k)) for k in range(index.parts)] == [SHARD] * 4 + [3]
    hashes = np.split(np.asarray(index.image_hash), np.cumsum(np.asarray(index.image_hash_count))[:-1])
    for row, own in enumerate(hashes):
        assert own.tolist() == [image_hash(image) for image in corpus.record(row).images], row
    assert index.corpus == corpus.index.fingerprint


def test_the_summary_counts(recipe: Recipe, nearest: Path) -> None:
    lines: list[str] = []
    result = build_concepts(recipe, nearest, report=lines.append)
    assert result.skipped and len(lines) == 1
    assert re.fullmatch(
        f"concepts {nearest}: 23 samples with 69 matches of 10 of 10 concepts, 0 without any, 0 damaged; "
        r"search by [\w-]+, exact scores for [\d.]+% of the pairs \(unchanged\)",
        lines[0],
    )
    summary = result.summary
    assert summary["embedded_per_second"] > 0 and set(summary["seconds"]) == {"encode", "search"}
    assert (summary["samples"], summary["matches"], summary["by_matches"]) == (SAMPLES, 69, [0, 0, 0, SAMPLES])
    assert (summary["hashes"], summary["hashes_nothing"]) == (sum(IMAGES), 0)
    assert summary["search"]["queries"] == SAMPLES and 0 < summary["search"]["scored_fraction"] <= 1
    assert summary["fingerprint"] == ConceptIndex.open(nearest).fingerprint


@pytest.mark.parametrize("workers", [0, 4])
def test_threads_do_not_change_the_index(recipe: Recipe, nearest: Path, workers: int, tmp_path: Path) -> None:
    build_concepts(change(recipe, workers=workers), tmp_path / "concepts", report=str)
    assert ConceptIndex.open(tmp_path / "concepts").fingerprint == ConceptIndex.open(nearest).fingerprint


def test_names_in_captions_need_no_encoder(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    vocabulary = str(tmp_path / "vocabulary")
    named = change(
        recipe, match="substring", vocabulary=vocabulary, weights="/nowhere", lists=[str(tmp_path / "names.txt")]
    )
    built = build_vocabulary(named, vocabulary, report=str)
    assert (built.summary["dimension"], Vocabulary.open(vocabulary).embedding.shape) == (0, (len(NAMES), 0))
    assert build_vocabulary(named, vocabulary, report=str).skipped
    result = build_concepts(named, tmp_path / "concepts", report=str)
    index, corpus = ConceptIndex.open(tmp_path / "concepts"), CorpusReader(recipe.data.corpus)
    expected = [["red apple", "apple"], [], ["lion", "castle"], ["苹果"], ["violin"], ["bicycle", "lighthouse"], []]
    assert concepts_of(index) == [expected[i % len(CAPTIONS)] for i in range(SAMPLES)]
    assert caption(corpus.record(2)) == CAPTIONS[2]
    assert np.asarray(index.score).tolist() == [1.0] * len(index.concept)
    assert (index.dimension, index.top_k, index.encoder, index.search, index.embedding) == (0, 0, "", "", None)
    assert result.summary["by_matches"] == [7, 6, 10] and result.summary["search"] is None


def test_without_hashes_no_image_is_decoded(tmp_path: Path) -> None:
    broken = replace(record(0), images=(image_bytes(40, 50)[:500],))  # only the header is whole
    recipe = make_recipe(tmp_path, [broken, *(record(i) for i in range(1, 9))], image_hashes=False)
    assert build_concepts(recipe, tmp_path / "concepts", report=str).summary["damaged"] == 0
    index = ConceptIndex.open(tmp_path / "concepts")
    assert len(index.image_hash) == 0 and not np.asarray(index.image_hash_count).any()
    assert np.asarray(index.matches).tolist() == [3] * 9


def test_an_image_that_cannot_be_decoded_damages_its_sample(tmp_path: Path) -> None:
    pictures = (image_bytes(60, 50), image_bytes(40, 50)[:500])
    broken = replace(record(4, images=2), images=pictures)
    recipe = make_recipe(tmp_path, [*(record(i) for i in range(4)), broken, record(5)])
    with pytest.raises(DataError, match=r"1 of 6 samples are damaged \(16.7%.*the first is s4: image_undecodable"):
        build_concepts(recipe, tmp_path / "concepts", report=str)
    result = build_concepts(change(recipe, reject_threshold=0.2), tmp_path / "concepts", report=str)
    index = ConceptIndex.open(tmp_path / "concepts")
    assert np.asarray(index.matches).tolist() == [3, 3, 3, 3, 0, 3]
    assert index.embedding is not None and not index.embedding[4].any()
    assert index.image_hash_count[4] == 2 and index.image_hash[4:6].tolist() == [image_hash(pictures[0]), 0]
    assert (result.summary["damaged"], result.summary["without"], result.summary["hashes_nothing"]) == (1, 1, 1)
    assert result.summary["damage"][0].startswith("s4: image_undecodable")


def test_images_are_embedded_and_those_without_have_no_concept(tmp_path: Path) -> None:
    weights = str(save_tiny_clip(tmp_path / "clip"))
    records = [record(i, images) for i, images in enumerate([1, 0, 2, 1, 0])]
    records[3] = replace(records[3], images=(image_bytes(40, 50)[:500],))
    vocabulary = str(write_names(tmp_path / "vocabulary", NAMES, encoder="clip", weights=weights))
    recipe = make_recipe(tmp_path, records, encoder="clip", weights=weights, vocabulary=vocabulary, image_hashes=False)
    result = build_concepts(change(recipe, reject_threshold=0.2), tmp_path / "concepts", report=str)
    index = ConceptIndex.open(tmp_path / "concepts")
    assert np.asarray(index.matches).tolist() == [3, 0, 3, 0, 0]
    assert (result.summary["damaged"], result.summary["without"]) == (1, 3)
    assert index.embedding is not None
    lengths = np.linalg.norm(np.asarray(index.embedding, np.float64), axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 1, 0, 0], atol=1e-3)


def spoil(corpus: Path, row: int, shard: int) -> bytes:
    """Change a byte of a sample; returns what the shard was."""
    path = corpus / f"shard-{shard:06d}.tar"
    whole = path.read_bytes()
    place = int(CorpusReader(corpus).index.json_offset[row]) + 12
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    return whole


def test_damage_is_counted_and_mended(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, [record(i) for i in range(12)], match="substring")
    corpus, output = Path(recipe.data.corpus), tmp_path / "concepts"
    whole = build_concepts(recipe, tmp_path / "whole", report=str).summary["fingerprint"]
    shards = {shard: spoil(corpus, row, shard) for row, shard in ((1, 0), (6, 1))}
    with pytest.raises(DataError, match=r"at least 1 of 12 samples are damaged .*the first is s1: .*was changed"):
        build_concepts(recipe, output, report=str)
    allowed = change(recipe, reject_threshold=0.1)  # one sample, and there are two
    with pytest.raises(DataError, match=r"2 of 12 samples are damaged \(16.7%, data.reject_threshold=0.1\)"):
        build_concepts(allowed, output, report=str)
    assert not output.exists()
    kept = (tmp_path / ".concepts.parts" / part_file(2)).stat().st_mtime_ns
    lenient = build_concepts(change(recipe, reject_threshold=0.5), tmp_path / "lenient", report=str)
    index = ConceptIndex.open(tmp_path / "lenient")
    assert np.asarray(index.matches).tolist() == [2, 0, 2, 1, 1, 2, 0, 2, 0, 2, 1, 1]  # row 6 names none anyway
    assert np.flatnonzero(np.asarray(index.image_hash) == 0).tolist() == [1, 6]
    assert (lenient.summary["damaged"], len(lenient.summary["damage"])) == (2, 2)
    with pytest.raises(DataError, match="2 of 12 samples are damaged"):  # the finished step has not fewer
        build_concepts(allowed, tmp_path / "lenient", report=str)
    for shard, data in shards.items():
        (corpus / f"shard-{shard:06d}.tar").write_bytes(data)
    mended = build_concepts(recipe, output, report=str)
    assert (mended.summary["damaged"], mended.summary["fingerprint"]) == (0, whole)
    assert (output / part_file(2)).stat().st_mtime_ns == kept


def test_what_a_result_depends_on_runs_the_step_again(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "concepts"
    for values in ({"top_k": 2}, {"encoder_batch": 3}, {"image_hashes": False}):
        assert not build_concepts(change(recipe, **values), output, report=str).skipped
    for values in ({"workers": 5}, {"reject_threshold": 0.5}, {"seed": 9}):
        assert build_concepts(change(recipe, image_hashes=False, **values), output, report=str).skipped


def test_a_damaged_result_is_made_again(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "concepts"
    first = build_concepts(recipe, output, report=str)
    (output / part_file(3)).unlink()
    lines: list[str] = []
    again = build_concepts(recipe, output, report=lines.append)
    assert not again.skipped and again.summary["fingerprint"] == first.summary["fingerprint"]
    assert re.match(r"the concepts are looked for again: .*concepts-000003.h5 is missing", lines[0])


def test_another_encoder_than_the_vocabularys_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    vocabulary = str(write_names(tmp_path / "vocabulary", NAMES, embedded=False))
    with pytest.raises(InputError, match="was made with encoder=none, concepts.encoder=text is .*`make vocabulary`"):
        build_concepts(change(recipe, vocabulary=vocabulary), tmp_path / "concepts")
    with pytest.raises(InputError, match="concepts.top_k=11: .* has 10 concepts; choose 1 to 10"):
        build_concepts(change(recipe, top_k=11), tmp_path / "concepts")
    assert not (tmp_path / "concepts" / FILE).exists()


def test_an_approximate_search_says_its_recall(recipe: Recipe, tmp_path: Path) -> None:
    lines: list[str] = []
    result = build_concepts(change(recipe, search="approximate"), tmp_path / "concepts", report=lines.append)
    assert 0 < result.summary["search"]["recall"] <= 1
    assert f"recall {result.summary['search']['recall']:.4f}" in lines[0]
    assert ConceptIndex.open(tmp_path / "concepts").search == "approximate"
