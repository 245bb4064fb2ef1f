from __future__ import annotations

import io
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.__main__ import main
from onevision.concepts.balance.build import build_balance
from onevision.concepts.balance.index import BalanceIndex
from onevision.concepts.build import build_concepts
from onevision.concepts.index import ConceptIndex
from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.corpus.reader import CorpusReader
from onevision.errors import InputError
from onevision.recipe import Recipe
from onevision.report.charts import Comparison, grouped, percent
from onevision.report.concept_charts import count_chart, rank_curves, score_charts, weight_chart
from onevision.report.concept_content import absent, changes, coverage_rows, groups, quotas, score_rows, top_share
from onevision.report.concept_facts import ConceptFacts, read_concept_facts
from onevision.report.concept_making import settings
from onevision.report.concept_measures import SCORE_EDGES
from onevision.report.concept_page import write_page
from onevision.report.concept_samples import choose_rows
from onevision.report.concept_text import print_report
from tests.concepts.cases import change
from tests.report.concepts import DRAWN, NAMES, SAMPLES, copy_of, make_balanced
from tests.report.page import Page


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Concepts by embeddings, with duplicates and a quota that cannot be reached. To be read only."""
    root = tmp_path_factory.mktemp("balanced")
    return make_balanced(root, duplicate_similarity=0.9999, quotas=["language.zh=0.9", "source.set-1=0.3"])


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Concepts that captions name. To be read only."""
    return make_balanced(tmp_path_factory.mktemp("named"), match="substring")


@pytest.fixture(scope="module")
def facts(balanced: Recipe) -> ConceptFacts:
    return read_concept_facts(balanced)


def page(facts: ConceptFacts) -> Page:
    return Page(write_page(facts))


def text(facts: ConceptFacts) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    print_report(facts, console)
    return console.file.getvalue()


def concepts_of(index: ConceptIndex) -> list[list[tuple[int, float]]]:
    """The concepts and scores of each sample."""
    ends = np.cumsum(np.asarray(index.matches, np.int64)).tolist()
    pairs = list(zip(np.asarray(index.concept).tolist(), np.asarray(index.score).tolist(), strict=True))
    return [pairs[a:b] for a, b in pairwise([0, *ends])]


def test_the_figures_are_those_of_the_files(balanced: Recipe, facts: ConceptFacts) -> None:
    found, shown = page(facts), text(facts)
    index, balance = ConceptIndex.open(balanced.concepts.index), BalanceIndex.open(balanced.data.balanced)
    fate, rows = np.asarray(balance.fate), concepts_of(index)
    duplicates = int(np.count_nonzero(fate == 2))
    assert duplicates and f"{duplicates:,} duplicates by embedding" in found.text
    assert f"of {SAMPLES:,} samples" in found.text and f"{DRAWN:,} of {SAMPLES:,} samples" in shown
    before, after = (
        Counter(c for row, kind in zip(rows, fate, strict=True) if kind in kinds for c, _ in row)
        for kinds in ((0, 1), (0,))
    )
    columns, table = coverage_rows(facts)
    told = dict(table)
    assert columns == ["corpus", "selection", "random draw"]
    assert told["Matches"][:2] == [f"{sum(count.values()):,}" for count in (before, after)]
    assert told["Concepts covered"][:2] == [f"{len(count)}" for count in (before, after)]
    for column, count in enumerate((before, after)):
        share = np.array(list(count.values())) / sum(count.values())
        assert told["Entropy, bits"][column] == f"{-(share * np.log2(share)).sum():.3f}"
        few = sum(count[c] < 10 for c in before)
        assert told["Fewer than 10 samples"][column] == f"{few} ({percent(few / len(before), 1)})"
    for name, values in table:
        assert "".join([name, *values]) in found.text and name in shown and all(value in shown for value in values)
    assert "notes" not in found.classes and "note:" not in shown


def test_groups_and_quotas_are_counted(balanced: Recipe, facts: ConceptFacts) -> None:
    corpus, fate = CorpusIndex.open(balanced.data.corpus), np.asarray(BalanceIndex.open(balanced.data.balanced).fate)
    tables = dict(groups(facts))
    assert set(tables) == {"Language", "Source", "Category"}
    kinds = (
        ("Language", corpus.languages, corpus.language),
        ("Source", corpus.sources, corpus.source),
        ("Category", corpus.categories, corpus.category),
    )
    for kind, names, numbers in kinds:
        assert [row.samples for row in tables[kind]] == sorted((row.samples for row in tables[kind]), reverse=True)
        for row in tables[kind]:
            own = numbers == names.index(row.name)
            counts = [np.count_nonzero(own & chosen) for chosen in (fate < 9, fate >= 2, fate == 0)]
            assert [row.samples, row.duplicates, row.drawn] == counts
            assert row.rate == counts[2] / counts[0] and row.drawn_share == counts[2] / DRAWN
    shown = {row.name: row for row in quotas(facts)}
    short, met = shown["language.zh"], shown["source.set-1"]
    zh = next(row for row in tables["Language"] if row.name == "zh")
    assert (short.asked, short.drawn) == (0.9, zh.drawn / DRAWN) and short.available == zh.drawn
    assert met.available is None and met.verdict == "reached"
    for whole in (page(facts).text, text(facts)):
        assert f"not reached: there are only {zh.drawn} samples without duplicates" in re.sub(r"\s+", " ", whole)


def test_samples_are_half_drawn_and_show_what_the_files_say(balanced: Recipe, facts: ConceptFacts) -> None:
    index, balance = ConceptIndex.open(balanced.concepts.index), BalanceIndex.open(balanced.data.balanced)
    corpus, rows = CorpusReader(balanced.data.corpus), concepts_of(index)
    assert len({sample.row for sample in facts.samples}) == 30
    assert [sample.fate == 0 for sample in facts.samples] == [True] * 15 + [False] * 15
    for sample in facts.samples:
        record = corpus.record(sample.row)
        assert (sample.id, sample.caption) == (record.id, record.messages[-1].text)
        assert sample.concepts == rows[sample.row]
        assert (sample.weight, sample.fate) == (balance.weight[sample.row], balance.fate[sample.row])
        sizes = [(shown.width, shown.height) for shown in sample.pictures]
        assert sizes == [(40 + sample.row, 50)] * len(record.images)
    found, shown = page(facts), text(facts)
    assert found.classes["example"] == 30 and found.tags["img"] == sum(len(s.pictures) for s in facts.samples) > 0
    for sample in facts.samples:
        assert sample.caption in found.text and f"{sample.id} (" in shown
        name, score = sample.concepts[0]
        assert f"{NAMES[name]} {score:.2f}" in found.text and f"{NAMES[name]} {score:.2f}" in shown
    assert read_concept_facts(balanced).samples == facts.samples


def test_rows_are_chosen_by_the_seed_from_both_kinds() -> None:
    class Fates:
        fate = np.array([0, 1, 1, 0, 2, 1, 1, 3, 1, 1], np.uint8)

    parts = np.array([[2, 2, 1, 0], [0, 0, 0, 0], [0, 4, 0, 1]])
    drawn = set(np.flatnonzero(Fates.fate == 0))
    seen = set()
    for seed in range(60):
        rows = choose_rows(parts, Fates(), seed, 6)  # type: ignore[arg-type]  # only its fates are read
        assert len(set(rows)) == 6 and set(rows[:2]) == drawn and not set(rows[2:]) & drawn
        assert rows == choose_rows(parts, Fates(), seed, 6)  # type: ignore[arg-type]
        seen |= set(rows)
    assert seen == set(range(10))
    assert choose_rows(np.array([[0, 3, 0, 0], [0, 2, 0, 0]]), None, 0, 30) == [0, 1, 2, 3, 4]


def test_the_tail(facts: ConceptFacts) -> None:
    gained, lost = changes(facts)
    before, after = facts.counts["before"], facts.counts["after"]
    difference = after / after.sum() - before / before.sum()
    shown = {row.name: row.share_after - row.share_before for row in (*gained, *lost)}
    assert [row.name for row in gained][0] == NAMES[int(difference.argmax())]
    assert [row.name for row in lost][0] == NAMES[int(difference.argmin())]
    assert all(difference[NAMES.index(name)] == pytest.approx(value) for name, value in shown.items())
    assert {row.name for row in gained} == {NAMES[c] for c in np.flatnonzero(difference > 0)}
    found = page(facts)
    for row in (*gained, *lost):
        values = [f"{row.before:,}", f"{row.after:,}", percent(row.share_before, 3), percent(row.share_after, 3)]
        assert "".join([row.name, *values]) in found.text


def test_concepts_that_nobody_has(named: Recipe) -> None:
    facts = read_concept_facts(named)
    assert absent(facts) == (1, ["umbra"])
    assert "1 concepts of the vocabulary" in page(facts).text and "\numbra\n" in text(facts)


def test_charts_hold_every_concept_and_sample(balanced: Recipe, facts: ConceptFacts) -> None:
    counts = [count_chart(facts).counts, [count[count > 0] for count in facts.counts.values()]]
    assert np.sum(counts[0], axis=0).tolist() == [len(count) for count in counts[1]]
    balance = BalanceIndex.open(balanced.data.balanced)
    fate, weight = np.asarray(balance.fate), np.asarray(balance.weight)
    weights = weight_chart(facts)
    assert weights is not None
    for label, bars in zip(weights.labels, weights.counts, strict=True):
        low, high = map(float, label.split(" – "))
        inside = (low <= weight) & (weight < high)
        assert bars == (np.count_nonzero(inside & (fate < 2)), np.count_nonzero(inside & (fate == 0)))
    assert sum(bars[0] for bars in weights.counts) == np.count_nonzero((fate < 2) & (weight > 0))
    curves = rank_curves(facts)
    assert curves is not None and list(curves.curves) == ["before", "after", "random"]
    assert curves.ranks[0] == (1, [int(count.max()) for count in facts.counts.values()])


def test_scores_by_language(balanced: Recipe, facts: ConceptFacts) -> None:
    corpus, rows = CorpusIndex.open(balanced.data.corpus), concepts_of(ConceptIndex.open(balanced.concepts.index))
    width = SCORE_EDGES[1] - SCORE_EDGES[0]
    for row in score_rows(facts):
        own = [pairs for pairs, k in zip(rows, corpus.language, strict=True) if corpus.languages[k] == row.language]
        assert (row.samples, row.without) == (len(own), 0)
        first, last = ([pairs[k][1] for pairs in own] for k in (0, -1))
        expected = [*np.quantile(first, (0.1, 0.5, 0.9), method="inverted_cdf"), np.median(last)]
        assert [row.low, row.median, row.high] == pytest.approx(expected[:3], abs=width)
        assert row.last == pytest.approx(expected[3], abs=3 * width)
    assert [sum(chart.counted["counts"]) for chart in score_charts(facts)] == [SAMPLES] * 2


def test_page_stands_alone(facts: ConceptFacts, balanced: Recipe) -> None:
    found = page(facts)
    path = Path(balanced.data.balanced) / "report.html"
    assert write_page(facts) == path
    assert not {"script", "link", "iframe"} & set(found.tags)
    inside = [link for link in found.links if not link.startswith("data:image/")]
    assert {link.removeprefix("#") for link in inside} <= set(found.ids) and len(found.ids) == len(set(found.ids))
    assert "url(" not in path.read_text(encoding="utf-8") and "nan" not in found.text
    assert "<b>places</b>" in found.text


def test_text_is_readable_at_80_columns(facts: ConceptFacts) -> None:
    shown = text(facts)
    tables = shown[shown.index("\nCoverage\n") : shown.index("\nHow it was made\n")]
    assert max(map(len, tables.splitlines())) <= 80 and "nan" not in shown


def test_how_it_was_made(facts: ConceptFacts) -> None:
    stats = facts.records["concepts"]["summary"]["search"]
    for shown in (page(facts).text, text(facts)):
        assert f"{percent(stats['scored_fraction'], 3)} of {stats['pairs']:,} pairs" in shown
        assert "cosine of at least 0.9999" in shown and "language.zh=0.9" in shown
        for record in facts.records.values():
            assert record["summary"]["fingerprint"][:12] in shown


def test_recall_and_damage_are_told(facts: ConceptFacts) -> None:
    summary = facts.records["concepts"]["summary"]
    search = summary["search"] | {"first_pass": "ivf", "sampled": 64, "recall": 0.984375}
    changed = summary | {"search": search, "damaged": 2, "damage": ["s1: shard.tar is short", "s2: no image"]}
    told = dict(settings(replace(facts, records=facts.records | {"concepts": {"summary": changed}})))
    assert told["Search"].endswith("it found 98.44\u202f% of the concepts that an exact search found for 64 samples")
    assert told["Damaged samples"] == "2, without concepts; the first: s1: shard.tar is short; s2: no image"
    assert dict(settings(facts))["Damaged samples"] == "none"


def test_named_concepts_have_no_scores(named: Recipe) -> None:
    facts = read_concept_facts(named)
    without = np.count_nonzero(np.asarray(facts.index.matches) == 0)
    assert without == SAMPLES / 7 and not score_rows(facts) and not score_charts(facts)
    for shown in (page(facts).text, text(facts)):
        assert f"{without} of {SAMPLES} samples" in re.sub(r"\s+", " ", shown) and "nan" not in shown


def test_without_a_selection_there_are_the_concepts(balanced: Recipe, tmp_path: Path) -> None:
    recipe = copy_of(balanced, tmp_path)
    shutil.rmtree(recipe.data.balanced)
    facts = read_concept_facts(recipe)
    (note,) = facts.notes
    assert note.startswith("selection: missing") and "run `make balance`" in note
    assert write_page(facts) == tmp_path / "concepts" / "report.html" and not Path(recipe.data.balanced).exists()
    found, shown = page(facts), text(facts)
    assert coverage_rows(facts)[0] == ["corpus"] and changes(facts) == ([], []) and weight_chart(facts) is None
    assert found.classes["example"] == 30 and "nan" not in found.text + shown
    assert note in shown and note.partition(": ")[2] in found.text
    unnamed = read_concept_facts(change(recipe, balanced=""))
    assert "data.balanced names no folder" in unnamed.notes[0] and "nan" not in page(unnamed).text


def test_without_a_vocabulary_or_a_corpus(balanced: Recipe, tmp_path: Path) -> None:
    recipe = copy_of(balanced, tmp_path)
    for name in ("vocabulary", "corpus"):
        shutil.rmtree(tmp_path / name)
    facts = read_concept_facts(recipe)
    assert [note.partition(":")[0] for note in facts.notes] == ["vocabulary", "corpus"]
    assert not facts.samples and not groups(facts) and facts.name(3) == "concept 3"
    found, shown = page(facts), text(facts)
    assert "concept 3" in found.text and "nan" not in found.text + shown
    assert [row.language for row in score_rows(facts)] == ["all"]


def test_a_selection_by_other_concepts_is_noted(balanced: Recipe, tmp_path: Path) -> None:
    recipe = copy_of(balanced, tmp_path)
    other = change(recipe, top_k=2)
    build_concepts(other, other.concepts.index, report=str)
    facts = read_concept_facts(other)
    (note,) = facts.notes
    assert facts.balance is not None and "was drawn by other concepts" in note and "run `make balance` again" in note
    assert "notes" in page(facts).classes and f"note: {note}" in text(facts)
    build_balance(other, other.data.balanced, report=str)
    assert not read_concept_facts(other).notes


def test_another_corpus_is_noted(balanced: Recipe, tmp_path: Path) -> None:
    recipe = copy_of(balanced, tmp_path)
    smaller = change(recipe, max_pixels=50_176, corpus=str(tmp_path / "other"))
    build_corpus(smaller.data, smaller.data.corpus, report=str)
    facts = read_concept_facts(smaller)
    assert facts.corpus is None and "run `make concepts` again" in facts.notes[0]
    other = change(smaller, match="substring")
    build_concepts(other, other.concepts.index, report=str)
    left_out = read_concept_facts(other)
    assert left_out.balance is None and "it is left out" in left_out.notes[0]
    assert left_out.folder == tmp_path / "concepts" and "nan" not in page(left_out).text + text(left_out)


def test_a_damaged_sample_is_named(balanced: Recipe, tmp_path: Path) -> None:
    recipe = copy_of(balanced, tmp_path)
    index = CorpusIndex.open(recipe.data.corpus)
    row = read_concept_facts(recipe).samples[0].row
    with (tmp_path / "corpus" / index.shards[index.shard[row]]).open("r+b") as file:
        file.seek(int(index.json_offset[row]) + 2)
        file.write(b"#")
    facts = read_concept_facts(recipe)
    damaged = [sample for sample in facts.samples if sample.damage]
    assert [sample.row for sample in damaged] == [row] and not damaged[0].pictures
    assert "was changed" in page(facts).text and "was changed" in text(facts)


def test_what_is_missing_is_one_line(
    balanced: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(Path(balanced.data.corpus).parent / "recipe.yaml")
    none = str(tmp_path / "none")
    assert main(["concepts-report", recipe, f"concepts.index={none}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and none in error and "run `make concepts`" in error
    missing = replace(balanced.concepts, index=none, vocabulary=none)
    with pytest.raises(InputError, match="run `make vocabulary`"):
        read_concept_facts(replace(balanced, concepts=missing))


def test_job_prints_and_writes(balanced: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(balanced.data.corpus).parent
    assert main(["concepts-report", str(root / "recipe.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"\nopen {root / 'balanced' / 'report.html'}\n") and "How it was made" in out


def test_top_share_is_that_of_the_most_frequent_hundredth() -> None:
    before = np.array([7] * 150 + [0] * 50, np.int64)
    count = np.arange(200, dtype=np.int64)
    assert top_share(count, before) == (199 + 198) / count.sum()
    assert top_share(before, before) == 2 / 150
    assert top_share(np.zeros(5, np.int64), np.zeros(5, np.int64)) == 0


def test_grouped_bars_have_heights_and_marks() -> None:
    shown = Comparison("", "", "", ("a", "b"), list("12345"), list("abcde"), [(8, 4), (0, 2), (1, 1), (0, 0), (4, 0)])
    bars = grouped(shown, marks=3)
    assert [[bar.height for bar in group] for group in bars.groups[:2]] == [[100, 50], [0, 25]]
    assert [(tick.at, tick.label) for tick in bars.ticks] == [(0, "1"), (40, "3"), (80, "5")] and bars.highest == 8
    log = grouped(replace(shown, log=True))
    assert log.groups[0][1].height == pytest.approx(100 * np.log(5) / np.log(9), abs=0.01)
