"""The step as a whole: its corpus is read like any other, its index says what became of each sample."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onevision.concepts.balance.build import build_balance
from onevision.concepts.balance.index import BalanceIndex
from onevision.concepts.build import build_concepts
from onevision.concepts.index import ConceptIndex
from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.corpus.reader import CorpusReader
from onevision.errors import DataError, InputError
from onevision.files import read_json
from onevision.packing.build import build_packs
from onevision.recipe import ConceptRecipe, DataRecipe, Recipe, recipe_problems
from onevision.report.results import PipelineFolders, read_results
from onevision.report.tables import lineage
from onevision.steps import StepResult
from onevision.training.inputs import check_inputs, open_sources
from tests.concepts import cases
from tests.concepts.balance.common import (
    CONCEPTS,
    concept_part,
    draw_concepts,
    small_recipe,
    with_concepts,
    write_index,
)
from tests.fixtures import sample_record, tiny_tokenizer, write_records


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(tmp_path_factory.mktemp("balance"), records=20)


def balance(recipe: Recipe, output: Path, **settings: Any) -> StepResult:
    return build_balance(with_concepts(recipe, **settings), output, report=lambda line: None)


def sample_lists(recipe: Recipe) -> list[list[int]]:
    index = ConceptIndex.open(recipe.concepts.index)
    start = np.cumsum([0, *index.matches[:].tolist()])
    return [index.concept[a:b].tolist() for a, b in zip(start, start[1:], strict=False)]


def names_of(corpus: CorpusIndex) -> list[str]:
    return [name.decode() for name in np.asarray(corpus.id).tolist()]


def test_the_selection_is_a_corpus_over_the_same_shards(made: Recipe, tmp_path: Path) -> None:
    result = balance(made, tmp_path / "balanced", samples=9)
    assert not list((tmp_path / "balanced").glob("*.tar"))
    reader, source = CorpusReader(tmp_path / "balanced"), CorpusReader(made.data.corpus)
    index = BalanceIndex.open(tmp_path / "balanced")
    rows = np.flatnonzero(np.asarray(index.fate) == 0).tolist()
    assert len(reader) == len(rows) == result.summary["samples"] == index.drawn == 9
    assert names_of(reader.index) == [names_of(source.index)[row] for row in rows]
    assert [reader.record(i) for i in range(9)] == [source.record(row) for row in rows]
    assert reader.index.fingerprint == result.summary["fingerprint"] != source.index.fingerprint
    assert result.summary["text_tokens"] == int(np.asarray(source.index.text_tokens)[rows].sum())
    for name in ("language", "source", "category"):
        plural = {"language": "languages", "source": "sources", "category": "categories"}[name]
        ours = [getattr(reader.index, plural)[k] for k in getattr(reader.index, name)]
        assert ours == [getattr(source.index, plural)[k] for k in getattr(source.index, name)[rows]]


@pytest.mark.parametrize(("weighting", "threshold"), [("sum", 1), ("mean", 1), ("metaclip", 3)])
def test_weights_are_those_of_the_formulas(made: Recipe, tmp_path: Path, weighting: str, threshold: int) -> None:
    balance(made, tmp_path / "balanced", samples=9, weighting=weighting, threshold=threshold)
    index, lists = BalanceIndex.open(tmp_path / "balanced"), sample_lists(made)
    count = np.bincount(np.concatenate([np.array(row, int) for row in lists]), minlength=index.concepts)
    assert index.count_before.tolist() == count.tolist()
    for row, weight in zip(lists, np.asarray(index.weight).tolist(), strict=True):
        inverse = [1 / count[c] for c in row]
        expected = {
            "sum": sum(inverse),
            "mean": sum(inverse) / max(len(row), 1),
            "metaclip": 1 - np.prod([1 - min(1, threshold / count[c]) for c in row]),
        }[weighting]
        assert weight == pytest.approx(expected, rel=1e-6)
    drawn = [row for row, fate in zip(lists, np.asarray(index.fate), strict=True) if fate == 0]
    after = np.bincount(np.concatenate([np.array(row, int) for row in drawn]), minlength=index.concepts)
    assert index.count_after.tolist() == after.tolist()
    assert index.count_random.sum() > 0 and (index.count_random <= count).all()


def test_all_are_drawn_without_a_number_and_those_without_concepts_come_last(made: Recipe, tmp_path: Path) -> None:
    everything = balance(made, tmp_path / "all")
    assert everything.summary["fingerprint"] == CorpusIndex.open(made.data.corpus).fingerprint
    without = np.array([not row for row in sample_lists(made)])
    assert 0 < without.sum() < 20
    balance(made, tmp_path / "some", samples=20 - int(without.sum()))
    index = BalanceIndex.open(tmp_path / "some")
    assert (np.asarray(index.fate) == without).all() and (np.asarray(index.weight)[without] == 0).all()


def test_coins_of_metaclip_keep_about_as_many_as_their_chances_say(made: Recipe, tmp_path: Path) -> None:
    drawn, chances = [], 0.0
    for seed in range(12):
        balance(made, tmp_path / "balanced", weighting="metaclip", threshold=1, seed=seed)
        index = BalanceIndex.open(tmp_path / "balanced")
        drawn.append(index.drawn)
        chances = float(np.asarray(index.weight).sum())
    weight = np.asarray(index.weight)
    assert abs(np.mean(drawn) - chances) < 4 * np.sqrt((weight * (1 - weight)).sum() / 12)
    assert len(set(drawn)) > 1


def test_what_is_drawn_does_not_depend_on_the_order_or_the_parts(tmp_path: Path) -> None:
    """The same records with the same concepts in another order, in other shards."""
    tiny_tokenizer(tmp_path / "tokenizer")
    lists = draw_concepts(30, CONCEPTS, seed=3)
    order = np.random.default_rng(1).permutation(30).tolist()
    found = []
    for name, rows, shard in (("one", list(range(30)), 30), ("other", order, 7)):
        write_records(tmp_path / name / "source", [sample_record(i) for i in rows])
        data = DataRecipe(
            source=str(tmp_path / name / "source"),
            tokenizer=str(tmp_path / "tokenizer"),
            shard_samples=shard,
            corpus=str(tmp_path / name / "corpus"),
        )
        corpus = CorpusIndex.open(build_corpus(data, data.corpus, report=lambda line: None).folder)
        edges = np.cumsum([0, *(len(piece) for piece in corpus.shard.pieces)]).tolist()
        parts = [concept_part([lists[i] for i in rows[a:b]]) for a, b in zip(edges, edges[1:], strict=False)]
        index = write_index(tmp_path / name / "concepts", parts, corpus.fingerprint)
        quotas = ["language.zh=0.6", "source.set-0=0.7"]
        recipe = Recipe(data=data, concepts=ConceptRecipe(index=str(index), samples=11, quotas=quotas))
        balance(recipe, tmp_path / name / "balanced")
        found.append(sorted(names_of(CorpusIndex.open(tmp_path / name / "balanced"))))
    assert found[0] == found[1] and len(found[0]) == 11


def test_a_seed_gives_one_selection_and_another_seed_another(made: Recipe, tmp_path: Path) -> None:
    found = [balance(made, tmp_path / f"{k}", samples=9, seed=seed).summary for k, seed in enumerate((1, 1, 2))]
    assert found[0]["fingerprint"] == found[1]["fingerprint"] != found[2]["fingerprint"]
    assert found[0]["balance"]["fingerprint"] == found[1]["balance"]["fingerprint"]


def test_nothing_is_done_twice_and_damage_is_made_again(made: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "balanced"
    first = balance(made, output, samples=9)
    assert not first.skipped and balance(made, output, samples=9).skipped
    for name in ("balance-000001.h5", "part-000001.h5"):
        (output / name).unlink()
        lines: list[str] = []
        again = build_balance(with_concepts(made, samples=9), output, report=lines.append)
        assert not again.skipped and again.summary == first.summary
        assert "the selection is drawn again" in lines[0] and name in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["balanced"]
    names = {path.name.split("-")[0] for path in output.iterdir()}
    assert names == {"balance", "balance.h5", "corpus.h5", "lineage.json", "part", "rejects.parquet", "step.json"}


def test_both_folders_may_be_moved_together(made: Recipe, tmp_path: Path) -> None:
    shutil.copytree(Path(made.data.corpus).parent, tmp_path / "here")
    recipe = replace(made, data=replace(made.data, corpus=str(tmp_path / "here/corpus")))
    balance(recipe, tmp_path / "here/balanced", samples=9)
    records = [CorpusReader(tmp_path / "here/balanced").record(i) for i in range(9)]
    assert CorpusIndex.open(tmp_path / "here/balanced").shard_folder == "../corpus"
    (tmp_path / "here").rename(tmp_path / "there")
    reader = CorpusReader(tmp_path / "there/balanced")
    assert [reader.record(i) for i in range(9)] == records
    (tmp_path / "there/corpus").rename(tmp_path / "gone")
    with pytest.raises(DataError, match=r"shard-000000\.tar is missing, .*balanced/corpus\.h5 says .*make balance"):
        CorpusReader(tmp_path / "there/balanced")
    assert CorpusReader(tmp_path / "there/balanced", str(tmp_path / "gone")).record(0) == records[0]


def test_a_selection_behind_a_link_finds_its_shards(made: Recipe, tmp_path: Path) -> None:
    (tmp_path / "large/disk").mkdir(parents=True)
    (tmp_path / "balanced").symlink_to("large/disk/balanced")
    balance(made, tmp_path / "balanced", samples=9)
    assert (tmp_path / "balanced").is_symlink()
    assert CorpusReader(tmp_path / "balanced").record(8) == CorpusReader(tmp_path / "large/disk/balanced").record(8)


def test_a_selection_of_a_selection_reads_the_first_shards(made: Recipe, tmp_path: Path) -> None:
    balance(made, tmp_path / "first", samples=12)
    corpus = CorpusIndex.open(tmp_path / "first")
    sizes = [len(piece) for piece in corpus.shard.pieces]
    parts = [concept_part(draw_concepts(size, 40, seed=k)) for k, size in enumerate(sizes)]
    index = write_index(tmp_path / "concepts", parts, corpus.fingerprint)
    recipe = with_concepts(made, index=str(index))
    recipe = replace(recipe, data=replace(recipe.data, corpus=str(tmp_path / "first")))
    balance(recipe, tmp_path / "deeper" / "second", samples=5)
    second = CorpusReader(tmp_path / "deeper" / "second")
    everything = CorpusReader(made.data.corpus)
    names = names_of(everything.index)
    assert [second.record(i) for i in range(5)] == [
        everything.record(names.index(name)) for name in names_of(second.index)
    ]


def test_packs_and_training_take_a_selection_like_any_corpus(made: Recipe, tmp_path: Path) -> None:
    balance(made, tmp_path / "balanced", samples=9)
    packs = str(tmp_path / "packs")
    data = replace(made.data, corpus=str(tmp_path / "balanced"), packs=packs, sequence_length=512, reject_threshold=0.9)
    build_packs(data, packs, report=lambda line: None)
    sources = open_sources(data)
    assert len(sources.sources[0].corpus) == 9
    assert not check_inputs(replace(made, data=data)).problems
    row = int(sources.sources[0].packs.sample[0])
    assert sources.sources[0].corpus.record(row).id == sources.sample_name(row)
    told = read_json(tmp_path / "balanced/lineage.json")
    corpus = told["made_from"]["corpus"]["step.json"]
    assert corpus["summary"]["fingerprint"] == told["inputs"]["corpus"] and corpus["summary"]["source"]


def test_concepts_that_were_found_are_balanced(tmp_path: Path) -> None:
    """After the real step before it: samples of the same caption are one, and of one caption only the first stays."""
    records = [cases.record(i) for i in range(3 * len(cases.CAPTIONS))]
    recipe = cases.make_recipe(tmp_path, records, index=str(tmp_path / "concepts"), duplicate_similarity=0.999)
    build_concepts(recipe, recipe.concepts.index, report=lambda line: None)
    found = balance(recipe, tmp_path / "balanced").summary["balance"]
    index = BalanceIndex.open(tmp_path / "balanced")
    captions = len(cases.CAPTIONS)
    assert np.asarray(index.fate).tolist() == [0] * captions + [2] * 2 * captions
    assert found["duplicates"] == {"embedding": 2 * captions, "image_hash": 0} and found["drawn"] == captions
    images = balance(recipe, tmp_path / "images", duplicate_similarity=0.0, duplicate_bits=0).summary["balance"]
    hashes = np.asarray(ConceptIndex.open(recipe.concepts.index).image_hash)
    assert images["duplicates"]["image_hash"] == np.count_nonzero(hashes) - len(set(hashes[hashes > 0].tolist()))
    assert balance(recipe, tmp_path / "some", samples=5, duplicate_similarity=0.0).summary["samples"] == 5


def test_a_report_tells_what_a_selection_was_made_from(made: Recipe, tmp_path: Path) -> None:
    balance(made, tmp_path / "balanced", samples=9)
    none = tmp_path / "none"
    folders = PipelineFolders(tmp_path, tmp_path / "balanced", none, none, none, {}, none, none)
    (row,) = lineage(read_results(folders))
    inputs = read_json(tmp_path / "balanced/step.json")["inputs"]
    assert row.folder == "balanced"
    assert row.made_from == f"corpus {inputs['corpus'][:12]}, concepts {inputs['concepts'][:12]}"


def test_the_summary_compares_with_a_random_draw(made: Recipe, tmp_path: Path) -> None:
    lines: list[str] = []
    output = tmp_path / "balanced"
    found = build_balance(with_concepts(made, samples=9), output, report=lines.append).summary["balance"]
    index = BalanceIndex.open(output)
    for name in ("before", "after", "random"):
        count = getattr(index, f"count_{name}")
        share = count[count > 0] / count.sum()
        coverage = found["coverage"][name]
        assert coverage["entropy_bits"] == pytest.approx(-np.sum(share * np.log2(share)))
        assert coverage["covered"] == (count > 0).sum()
        assert coverage["rare"] == ((index.count_before > 0) & (count < 100)).sum()
    assert sum(row["before"] for row in found["language"].values()) == 20
    assert sum(row["after"] for row in found["source"].values()) == 9
    assert "9 of 20 samples" in lines[0] and "a random draw" in lines[0] and "\n" not in lines[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 21}, r"concepts\.samples=21 are more than .*corpus\.h5 has: 20"),
        ({"samples": 5, "quotas": ["language.zn=0.5"]}, "the corpus has no language 'zn'; the nearest is 'zh'"),
        ({"samples": 5, "quotas": ["source.set-9=0.5"]}, "the corpus has no source 'set-9'; the nearest is 'set-"),
        ({"samples": 5, "quotas": ["tongue.zh=0.5"]}, "not of the form language"),
        ({"samples": 5, "quotas": ["language.zh"]}, "not of the form language"),
        ({"samples": 5, "quotas": ["language.zh=half"]}, "'half' is not a share from 0 to 1"),
        ({"samples": 5, "quotas": ["language.zh=0.7", "language.en=0.4"]}, "sum to 1.1, above 1: en=0.4, zh=0.7"),
        ({"samples": 5, "quotas": ["language.zh=0.2", "language.zh=0.4"]}, "has a share already"),
        ({"quotas": ["language.zh=0.2"]}, "set concepts.samples"),
        ({"duplicate_similarity": 0.9}, "has no embeddings: set it to 0"),
        ({"duplicate_bits": 0}, "has no image hashes: set it to -1"),
    ],
)
def test_what_cannot_be_is_one_line(made: Recipe, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        balance(made, tmp_path / "balanced", **settings)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_concept_index_of_another_corpus_is_refused(made: Recipe, tmp_path: Path) -> None:
    other = small_recipe(tmp_path / "other", records=12)
    with pytest.raises(InputError, match=r"concepts\.h5 was made with corpus=.*: run `make concepts` again"):
        balance(replace(other, concepts=made.concepts), tmp_path / "balanced")
    whole = small_recipe(tmp_path / "whole", records=20, shard_samples=20)  # the same corpus in one shard
    with pytest.raises(InputError, match=r"has 3 parts, which are not the 1 of"):
        balance(replace(whole, concepts=made.concepts), tmp_path / "balanced")


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_similarity_is_a_cosine(made: Recipe, value: float) -> None:
    problems = recipe_problems(with_concepts(made, duplicate_similarity=value))
    assert any("concepts.duplicate_similarity" in problem for problem in problems)
