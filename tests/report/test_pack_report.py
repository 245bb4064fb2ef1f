from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.__main__ import main
from onevision.errors import InputError
from onevision.files import read_json, write_json
from onevision.packing.index import PackIndex
from onevision.recipe import Recipe, load_recipe
from onevision.report.charts import percent
from onevision.report.dealing import measure_dealings
from onevision.report.pack_content import above_bound, fill_percent, left_out, paddings, token_tables
from onevision.report.pack_facts import BATCHES, PackFacts, read_pack_facts
from onevision.report.pack_page import write_page
from onevision.report.pack_text import print_report
from onevision.report.text import BAR, bar, bins
from tests.report.packs import BATCH, build_packed
from tests.report.page import Page

HISTOGRAMS = (
    ("fill_histogram", "packs"),
    ("samples_histogram", "packs"),
    ("length_histogram", "samples"),
    ("patches_histogram", "packs"),
    ("attention_cost_histogram", "packs"),
    ("cost_histogram", "packs"),
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """To be read only."""
    return build_packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def copied(packed: Recipe, tmp_path: Path) -> Recipe:
    """A copy, to be damaged."""
    root = Path(packed.data.packs).parent
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return load_recipe(tmp_path / "recipe.yaml", [f"data.{name}={tmp_path / name}" for name in ("corpus", "packs")])


def page(facts: PackFacts) -> Page:
    return Page(write_page(facts))


def text(facts: PackFacts) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    print_report(facts, console)
    return console.file.getvalue()


def counts_of(found: Page, unit: str) -> list[int]:
    """The counts of all bars of a unit, empty ones left out, in the order of the page."""
    titles = [title for title in found.titles if title.endswith(f" {unit}")]
    counts = [int(title.rpartition(": ")[2].removesuffix(f" {unit}").replace(",", "")) for title in titles]
    return [count for count in counts if count]


def test_page_shows_every_number_of_the_summary(packed: Recipe) -> None:
    facts = read_pack_facts(packed)
    found, summary = page(facts), read_json(Path(packed.data.packs) / "step.json")["summary"]
    for unit in ("packs", "samples"):
        expected = [count for name, of in HISTOGRAMS if of == unit for count in summary[name]["counts"] if count]
        assert counts_of(found, unit) == expected
    for key in ("samples", "tokens", "packs"):
        assert f"{summary[key]:,} {key}" in found.text
    assert f"Packs that are {percent(summary['fill'], 2)} full." in found.text
    numbers = Path(packed.data.packs, "report.html").read_text(encoding="utf-8")
    for pack in summary["largest_packs"]:
        row = [f"{pack[key]:,}" for key in ("pack", "samples", "tokens", "patches", "attention_cost")]
        assert "</td><td>".join([*row, f"{pack['cost_to_mean']:.3f}"]) in numbers
    for key in ("patches", "attention_cost", "cost"):
        row = [f"{summary[key]['mean']:,.0f}"] + [f"{summary[key][name]:.3f}" for name in ("std", "p99", "max")]
        assert "</td><td>".join(row) in numbers
    for key in ("category_tokens", "language_tokens", "source_tokens"):
        for name, tokens in summary[key].items():
            assert f"{name}</td><td>{tokens:,}</td>" in numbers
    for name in ("padded_to_longest", "padded_to_sequence_length"):
        assert f"<strong>{summary['compression'][name]:.2f} x</strong>" in numbers


def test_page_shows_the_measured_dealings(packed: Recipe) -> None:
    facts = read_pack_facts(packed)
    measured = measure_dealings(PackIndex.open(packed.data.packs), (BATCH, *BATCHES))
    assert facts.dealings == measured and measured
    found, shown = page(facts), text(facts)
    for row in measured:
        assert f"{percent(row.spread, 2)} ({percent(row.random_spread, 1)})" in found.text
        assert f"({percent(row.random_spread)})" in shown
    assert "this recipe" in found.text
    assert f"Of {measured[0].ranks} ranks with {BATCH} packs a step" in found.text


def test_packs_of_a_selection_are_compared_with_the_selection(packed: Recipe, tmp_path: Path) -> None:
    overrides = [f"data.balanced={packed.data.corpus}", f"data.corpus={tmp_path / 'whole'}"]
    facts = read_pack_facts(load_recipe(Path(packed.data.packs).parent / "recipe.yaml", overrides))
    assert facts.corpus_folder == Path(packed.data.corpus) and facts.corpus and not facts.notes


def test_no_number_is_cut_off_in_a_narrow_terminal(packed: Recipe) -> None:
    facts = read_pack_facts(packed)
    console = Console(file=io.StringIO(), width=40, highlight=False)
    print_report(facts, console)
    found = re.findall(r"[\d,]+ +[\d,]+ +[\d,]+ +[\d.,]+\s% +[\d.]+ x$", console.file.getvalue(), re.MULTILINE)
    assert len(found) == len(paddings(facts)) and "Padded to" in console.file.getvalue()
    assert console.width == 40


def test_page_stands_alone(packed: Recipe) -> None:
    found = page(read_pack_facts(packed))
    path = Path(packed.data.packs) / "report.html"
    assert not {"script", "link", "iframe", "img"} & set(found.tags)
    assert {link[1:] for link in found.links} <= set(found.ids) and len(found.ids) == len(set(found.ids))
    assert "url(" not in path.read_text(encoding="utf-8") and "nan" not in found.text
    assert "notes" not in found.classes


def test_text_is_readable_at_80_columns(packed: Recipe) -> None:
    facts = read_pack_facts(packed)
    shown, summary = text(facts), facts.summary
    tables = shown[shown.index("\nFill\n") :]
    assert all(len(line) <= 80 or line.startswith("listed in ") for line in tables.splitlines())  # paths stay whole
    for key, value in (("packs", summary["packs"]), ("samples", summary["samples"]), ("tokens", summary["tokens"])):
        assert f"{value:,} {key}" in shown
    assert fill_percent(summary["fill"]) in shown
    counts = re.findall(r"^ *[\d.,]+(?: [%M])? +– .* ([\d,]+) +[\d.]+\s%$", shown, re.MULTILINE)
    assert sum(int(count.replace(",", "")) for count in counts) == 5 * summary["packs"] + summary["samples"]
    for pack in summary["largest_packs"]:
        row = [f"{pack[key]:,}" for key in ("pack", "samples", "tokens", "patches", "attention_cost")]
        assert re.search(r"^" + r" +".join([*row, f"{pack['cost_to_mean']:.3f}"]) + r"$", shown, re.MULTILINE)


def test_what_is_left_out_is_counted_and_found(tmp_path: Path) -> None:
    facts = read_pack_facts(build_packed(tmp_path, sequence_length=128, max_patches=80))
    rows = left_out(facts)
    ledgers = [tmp_path / name for name in ("corpus/rejects.parquet", "packs/overlong.parquet")]
    rejects, overlong = map(pq.read_table, ledgers)
    assert {row.listed for row in rows} == set(ledgers)
    assert sum(row.samples for row in rows if row.listed.name == "rejects.parquet") == len(rejects) == 1
    reasons = overlong.column("reason").to_pylist()
    assert set(reasons) == {"sequence_length", "max_patches"}
    assert sorted(row.samples for row in rows[1:]) == sorted(reasons.count(reason) for reason in set(reasons))
    shown = text(facts)
    assert f"listed in {tmp_path / 'packs/overlong.parquet'}\n" in shown
    assert "more patches than data.max_patches" in page(facts).text
    assert facts.summary["samples"] + len(rejects) + len(overlong) == 120


def test_paddings_compare_slots(packed: Recipe) -> None:
    facts = read_pack_facts(packed)
    index = PackIndex.open(packed.data.packs)
    packs, longest, full = paddings(facts)
    assert (packs.slots, packs.share) == (index.packs * 320, facts.summary["fill"])
    assert longest.slots == longest.rows * longest.row_tokens == index.samples * longest.row_tokens
    assert longest.compression == pytest.approx(longest.slots / packs.slots)
    assert full.slots == index.samples * 320
    assert full.compression == pytest.approx(full.slots / packs.slots)
    assert [row.share * row.slots for row in (longest, full)] == pytest.approx([facts.summary["tokens"]] * 2)


def test_samples_without_images(tmp_path: Path) -> None:
    facts = read_pack_facts(build_packed(tmp_path, images=[0], damaged=0))
    assert facts.summary["patches"]["max"] == 0
    found, shown = page(facts), text(facts)
    assert "Image patches" not in found.text and "Image patches" not in shown
    assert "Attention cost" in found.text and "Attention cost" in shown
    assert "nan" not in found.text + shown


def test_one_pack(tmp_path: Path) -> None:
    facts = read_pack_facts(build_packed(tmp_path, samples=2, damaged=0))
    assert facts.summary["packs"] == 1 and not facts.dealings
    found, shown = page(facts), text(facts)
    assert "There are too few packs to measure it" in found.text
    assert "no packing has fewer packs" in shown
    assert "Nothing was left out." in found.text and "nan" not in found.text + shown


def test_packs_in_parts(tmp_path: Path) -> None:
    facts = read_pack_facts(build_packed(tmp_path, pack_part_samples=40))
    summary = facts.summary
    assert len(list((tmp_path / "packs").glob("packs-*.h5"))) == 3
    assert sum(counts_of(page(facts), "packs")) == 5 * summary["packs"]
    assert facts.dealings and f"{summary['packs']:,} packs" in text(facts)


def test_bound_that_packs_keep(packed: Recipe) -> None:
    facts = read_pack_facts(packed)
    more = facts.summary["packs"] - facts.summary["lower_bound_packs"]
    assert above_bound(facts).startswith(f"{more} (") and above_bound(facts).endswith("lower bound by tokens")
    facts.summary.update(lower_bound_packs=facts.summary["packs"])
    assert above_bound(facts) == "no packing has fewer packs (bound by patches or attention cost)"


def test_many_sources_end_in_one_row(packed: Recipe) -> None:
    facts = read_pack_facts(packed)
    facts.summary["source_tokens"] = {f"set-{number}": 100 - number for number in range(40)}
    (_, rows) = token_tables(facts)[-1]
    assert [row.name for row in rows] == [*(f"set-{number}" for number in range(11)), "29 others"]
    assert sum(row.tokens for row in rows) == sum(facts.summary["source_tokens"].values())
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_job_prints_and_writes(copied: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"data.{name}={tmp_path / name}" for name in ("corpus", "packs")]
    assert main(["pack-report", str(tmp_path / "recipe.yaml"), *settings, "ranks=4"]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"\nopen {tmp_path / 'packs' / 'report.html'}\n") and "Samples a pack" in out
    Page(tmp_path / "packs" / "report.html")


def test_missing_packs_are_one_line(packed: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(packed.data.packs).parent / "recipe.yaml"
    assert main(["pack-report", str(recipe), f"data.packs={tmp_path / 'none'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "none") in error and "run `make pack`" in error


def test_packs_of_an_older_version_are_refused(copied: Recipe) -> None:
    path = Path(copied.data.packs) / "step.json"
    record = read_json(path)
    del record["summary"]["bounds"]
    write_json(path, record)
    with pytest.raises(InputError, match="older version.*run `make pack` again"):
        read_pack_facts(copied)


def test_corpus_that_is_missing_or_another_is_noted(copied: Recipe) -> None:
    path = Path(copied.data.corpus) / "step.json"
    record = read_json(path)
    record["summary"]["fingerprint"] = "0" * 32
    write_json(path, record)
    (note,) = read_pack_facts(copied).notes
    assert note.startswith("corpus: ") and "0" * 12 in note
    path.unlink()
    facts = read_pack_facts(copied)
    assert facts.notes[0].startswith("corpus: missing") and facts.corpus is None
    found, shown = page(facts), text(facts)
    assert "rejects not known" in found.text and "note: corpus: missing" in shown


def test_bins_join_neighbours_and_then_empty_ones() -> None:
    counted = {"edges": list(range(9)), "counts": [0, 1, 0, 0, 0, 0, 3, 0]}
    assert bins(counted, 8) == [(1, 2, 1), (2, 6, 0), (6, 7, 3)]
    assert bins(counted, 3) == [(1, 3, 1), (3, 5, 0), (5, 7, 3)]
    random = np.random.default_rng(0).integers(0, 3, 37).tolist()
    joined = bins({"edges": list(range(38)), "counts": random}, 5)
    assert len(joined) <= 5 and sum(row[2] for row in joined) == sum(random)
    assert all(low[1] == high[0] for low, high in zip(joined, joined[1:], strict=False))


def test_bars_and_shares_do_not_hide_what_little_there_is() -> None:
    assert bar(1) == "█" * BAR and bar(0) == "" and bar(1e-9) == "▏"
    assert bar(0.5, width=3) == "█▌"
    assert fill_percent(0.99998428) == percent(0.99998, 3)
    assert fill_percent(1.0) == percent(1.0, 2) and fill_percent(0.776) == percent(0.776, 2)
