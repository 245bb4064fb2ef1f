from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jobs.report import report_here
from onevision.corpus.reader import CorpusReader
from onevision.files import read_json, read_json_lines
from onevision.recipe import load_recipe
from onevision.report.examples import SHOWN, choose, example_groups
from onevision.report.picture import write_picture
from onevision.report.report import render, write_report
from onevision.report.results import PipelineFolders, make_command, read_results
from onevision.report.summary import summarise
from onevision.report.tables import languages, licences, lineage, wilson
from onevision.report.thumbnails import picture
from tests.fixtures import image_bytes
from tests.report.page import Page
from tests.report.pipeline import write_stage


def page(folders: PipelineFolders) -> Page:
    return Page(write_report(folders))


def test_page_is_complete_and_stands_alone(copied: PipelineFolders) -> None:
    path = write_report(copied)
    assert path == copied.root / "report.html"
    assert path.stat().st_size < 4 << 20
    found = Page(path)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert all(link.startswith(("data:image/", "#")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert "url(" not in path.read_text(encoding="utf-8")
    for section in ("accuracy", "answers", "training", "data", "lineage"):
        assert section in found.ids
    assert "unseen questions correctly" in found.text
    for text in (
        "Stage 1.5",
        "Learning rate",
        "Throughput",
        "MFU",
        "Pack fill",
        "CC0-1.0",
        "set-1",
        "2.4 M param",
    ):
        assert text in found.text
    assert "notes" not in found.classes
    assert "nan" not in re.sub(r"base64,[^\"]*", "", path.read_text(encoding="utf-8"))


def test_answers_are_escaped_and_marked(finished: PipelineFolders, tmp_path: Path) -> None:
    path = write_report(finished, tmp_path / "out" / "page.html")
    found = Page(path)
    results = read_results(finished)
    groups = example_groups(results)
    shown = [example for group in groups for example in group.examples]
    assert found.classes["example"] == len(shown) > 0
    assert found.classes["right"] == sum(example.correct for example in shown) > 0
    assert found.classes["wrong"] == sum(not example.correct for example in shown) > 0
    assert found.tags["img"] == sum(len(example.pictures) for example in shown) > 0
    assert "<wrong & 错>" in found.text
    assert "&lt;wrong &amp; 错&gt;" in path.read_text(encoding="utf-8")


def test_same_results_give_the_same_page(finished: PipelineFolders) -> None:
    first, second = read_results(finished), read_results(finished)
    fixed = {"created": "2025-01-01T00:00:00+00:00"}
    assert render(first, summarise(first) | fixed) == render(second, summarise(second) | fixed)


@pytest.mark.parametrize(
    ("removed", "headline", "note"),
    [
        (("after", "before"), "not evaluated yet", "evaluation after training: missing"),
        (("stage2",), "unseen questions correctly", "stage2: missing"),
        (("packs",), "unseen questions correctly", "packs: missing"),
        (("corpus",), "unseen questions correctly", "corpus: missing"),
        (("heldout",), "unseen questions correctly", "held-out corpus: missing"),
        (("before",), "unseen questions correctly", "evaluation before training: missing"),
        (
            ("stage0", "stage1", "stage1_5", "stage2", "before", "after"),
            "nothing is trained yet",
            "stage1: missing",
        ),
        (
            ("corpus", "heldout", "packs", "stage0", "stage1", "stage1_5", "stage2"),
            "unseen questions",
            "corpus: missing",
        ),
    ],
)
def test_partial_results_are_shown(
    copied: PipelineFolders, removed: tuple[str, ...], headline: str, note: str
) -> None:
    for name in removed:
        shutil.rmtree(copied.root / name)
    found = page(copied)
    assert headline in found.text
    assert note in found.text
    assert found.classes["notes"] == 1


def test_stage_that_has_just_begun(copied: PipelineFolders) -> None:
    shutil.rmtree(copied.stages["stage2"])
    write_stage(copied.root, "stage2", 30, 0.9, 0.3, stop_at=1)
    assert "not finished, step 1 of 30" in page(copied).text


def test_single_run(copied: PipelineFolders) -> None:
    one = PipelineFolders(
        root=copied.root / "stage2",
        corpus=copied.corpus,
        heldout=copied.heldout,
        packs=copied.packs,
        stage0=copied.stage0,
        stages={"stage2": copied.stages["stage2"]},
        before=copied.before,
        after=copied.after,
    )
    assert "Stage 2: 30 steps" in page(one).text
    assert (copied.root / "stage2" / "report.html").exists()


def test_the_job_in_the_run_folder_itself(copied: PipelineFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step.json is not taken for that of a corpus, which the recipe does not name."""
    monkeypatch.chdir(copied.stages["stage2"])
    report = report_here(load_recipe("recipe.yaml"), Path())
    text = report.read_text("utf-8")
    assert "<title>stage2" in text
    assert "jobs export ." in text
    notes = read_json("summary.json")["notes"]
    assert notes[:3] == [f"{what}: there is none" for what in ("corpus", "held-out corpus", "packs")]


def test_commands_name_folders_as_a_shell_reads_them() -> None:
    assert make_command("resume", Path("runs/demo/stage2")) == "make resume RUN=demo/stage2"
    assert make_command("resume", Path("runs/my run")) == ".venv/bin/python -m jobs resume 'runs/my run'"


def test_answers_to_another_corpus_have_no_images(copied: PipelineFolders) -> None:
    path = copied.after / "answers.jsonl"
    rows = read_json_lines(path)
    path.write_text(
        "".join(json.dumps(row | {"id": f"other-{row['id']}"}) + "\n" for row in rows), encoding="utf-8"
    )
    groups = example_groups(read_results(copied))
    assert groups and not any(example.pictures for group in groups for example in group.examples)


def test_examples_have_the_images_of_their_turn(finished: PipelineFolders) -> None:
    corpus = CorpusReader(finished.heldout)
    rows = {corpus.index.id[i].decode(): i for i in range(len(corpus))}
    kinds = set()
    for group in example_groups(read_results(finished)):
        assert len(group.examples) <= SHOWN
        assert {example.correct for example in group.examples} == {True, False}
        for example in group.examples:
            record = corpus.record(rows[example.id])
            assert len(example.pictures) == len(record.images)
            assert len(example.earlier) == example.turn - 1
            kinds.add((example.language, len(example.pictures)))
    assert {language for language, _ in kinds} == {"en", "zh"}
    assert {images for _, images in kinds} == {0, 1, 2, 3}


def test_choice_keeps_the_share_of_wrong_answers() -> None:
    def answers(right: int, wrong: int) -> list[dict[str, object]]:
        made = [{"correct": True}] * right + [{"correct": False}] * wrong
        return [row | {"language": "en", "turn": 0, "text": f"question {i}"} for i, row in enumerate(made)]

    def wrong_of(right: int, wrong: int) -> tuple[int, int]:
        chosen = choose(answers(right, wrong), [1] * (right + wrong), 6)
        return len(chosen), sum(not row["correct"] for row in chosen)

    assert wrong_of(50, 50) == (6, 3)
    assert wrong_of(99, 1) == (6, 1)
    assert wrong_of(1, 99) == (6, 5)
    assert wrong_of(100, 0) == (6, 0)
    assert wrong_of(0, 100) == (6, 6)
    assert wrong_of(2, 1) == (3, 1)
    assert wrong_of(0, 0) == (0, 0)


def test_large_and_foreign_images_are_converted() -> None:
    small = picture(image_bytes(40, 30))
    assert (
        small is not None
        and small.uri.startswith("data:image/png")
        and (small.width, small.height) == (40, 30)
    )
    large = picture(image_bytes(900, 700))
    assert (
        large is not None
        and large.uri.startswith("data:image/jpeg")
        and (large.width, large.height) == (900, 700)
    )
    assert len(large.uri) < 300_000
    foreign = picture(image_bytes(40, 30, format="TIFF"))
    assert foreign is not None and foreign.uri.startswith("data:image/jpeg")
    assert picture(b"no image") is None


def test_tables_count_every_sample(finished: PipelineFolders) -> None:
    results = read_results(finished)
    assert sum(licence.samples for licence in licences(results)) == 60
    assert licences(results)[0].sources == ["set-0", "set-1"]
    assert results.after is not None
    assert sum(row.n for row in languages(results)) == len(results.after.answers)
    assert [row.folder for row in lineage(results)] == [
        "corpus",
        "heldout",
        "packs",
        "stage0",
        "stage1",
        "stage1_5",
        "stage2",
        "before",
        "after",
    ]


def test_wilson_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right / n, n) == pytest.approx((low, high), abs=2e-4)


def test_picture_for_the_readme(finished: PipelineFolders, copied: PipelineFolders, tmp_path: Path) -> None:
    first, second = (write_picture(finished, tmp_path / name) for name in ("a.png", "b.png"))
    assert Image.open(first).size == (1600, 720)
    assert first.read_bytes() == second.read_bytes()
    for name in ("stage1", "stage1_5", "stage2"):
        shutil.rmtree(copied.root / name)
    assert Image.open(write_picture(copied, tmp_path / "c.png")).size == (1600, 720)
