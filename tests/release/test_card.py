"""The model card says what the run's files say, and nothing else."""

from __future__ import annotations

import io
import json
import re
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from onevision.corpus.reader import CorpusReader
from onevision.files import read_json
from onevision.release.bundle import Release, build_release
from onevision.release.card import cell, code, table
from onevision.release.personal import personal
from onevision.training.checkpoint_files import step_folder
from onevision.training.history import read_metrics
from tests.release.conftest import TASK, Lab


def rows_of(card: str) -> dict[str, list[str]]:
    """The cells of all tables by the first one of their line; of lines with the same one the last."""
    found = {}
    for line in card.splitlines():
        if line.startswith("| "):
            first, *others = [text.strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[first] = others
    return found


@pytest.fixture(scope="module")
def card(released: Release) -> str:
    return (released.folder / "README.md").read_text(encoding="utf-8")


def test_the_front_matter_names_the_checkpoint(lab: Lab, released: Release, card: str) -> None:
    front = yaml.safe_load(card.split("---\n")[1])
    checkpoint = read_json(step_folder(lab.run, 4) / "checkpoint.json")
    environment = read_json(lab.run / "environment.json")
    assert front["onevision"] == {
        "run": read_json(lab.run / "run.json")["id"],
        "step": 4,
        "checkpoint": checkpoint["fingerprint"],
        "suite": "0.1.0",
        "commit": environment["commit"],
    }
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert front["language"] == ["en", "zh"] and "license" not in front


def test_the_recipe_table_is_that_of_recipes_and_metrics(lab: Lab, card: str) -> None:
    rows = rows_of(card)
    runs = [(recipe, read_metrics(recipe.output)) for recipe in (lab.stage1, lab.stage2)]
    assert rows["Steps"] == ["2", "4"]
    assert rows["Trained"] == ["adapter", "all parts"]
    assert rows["Loss, first step"] == [f"{metrics[0]['loss']:.4f}" for _, metrics in runs]
    assert rows["Loss, last step"] == [f"{metrics[-1]['loss']:.4f}" for _, metrics in runs]
    for label, key in (
        ("Samples read", "samples"),
        ("Tokens read", "tokens"),
        ("Tokens learned from", "target_tokens"),
    ):
        assert rows[label] == [f"{sum(row[key] for row in metrics):,}" for _, metrics in runs]
    assert rows["Learning rate"][1].startswith("0.002 to 0.0001, cosine, warm-up 0.2")
    assert rows["Layout"] == ["1 rank: tensor 1, context 1, pipeline 1, data 1"] * 2
    assert rows["Precision"] == ["FP32, products in FP32"] * 2
    environment = read_json(lab.run / "environment.json")
    assert rows["torch"][1] == environment["packages"]["torch"]
    assert rows["Commit of the suite"][1] == (environment["commit"] or "not recorded")
    assert environment["host"] not in "".join(rows["Device"] + rows["System"])


def test_the_model_is_that_of_the_checkpoint(lab: Lab, released: Release, card: str) -> None:
    with (released.folder / "model-00001-of-00001.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    rows = rows_of(card)
    assert rows["Parameters"] == [f"{sum(int(np.prod(shape)) for shape in shapes):,}"]
    assert rows["Weights"][0].startswith("float32, ")
    architecture = read_json(step_folder(lab.run, 4) / "checkpoint.json")["architecture"]["language"]
    assert (
        f"{architecture['num_layers']} layers, width {architecture['hidden_size']},"
        in rows["Language model (Qwen3)"][0]
    )
    assert "Logits of these weights in other loaders against the checkpoint's: not recorded." in card


def test_data_and_licences_are_those_of_the_corpus(lab: Lab, card: str) -> None:
    corpus = CorpusReader(lab.root / "corpus")
    records = [corpus.record(row) for row in range(len(corpus))]
    languages = Counter(record.language for record in records)
    assert f"Languages: {', '.join(f'{name} {count}' for name, count in languages.most_common())}." in card
    sources = Counter(record.source for record in records)
    told = "; ".join(f"{cell(name)} ({count})" for name, count in sources.most_common())
    assert f"| CC0-1.0 | 40 | {told} |" in card
    assert "shop \\| \\<b\\>0\\</b\\>" in card and "<b>" not in card  # text of the data is no markup
    assert corpus.index.fingerprint in card
    assert "30 of 40 samples were drawn, with `concepts.weighting` `sum` and seed 0" in card
    assert "Start: random weights, drawn from seed 1234 (`runs/start`)." in card


def test_evaluations_are_those_of_the_result_files(lab: Lab, card: str) -> None:
    rows = rows_of(card)
    for name, score in read_json(lab.run / "evaluation" / "step.json")["summary"]["categories"].items():
        assert rows[name][:3] == [f"{score['n']}", "not recorded", f"{100 * score['accuracy']:.1f} %"]
    assert rows["mmstar"] == [
        "onevision",
        "average",
        "41.2 %",
        f"{TASK['answered']:,}",
        "2",
        "–",
        "67.7 (-26.4)",
        "max\\_pixels=12544, lmms-eval 0.7.3",
    ]


def test_what_is_not_known_is_said_to_be_not_recorded(lab: Lab, card: str) -> None:
    assert "Made to be \\| tested." in card  # the recipe's description
    limits = card.partition("## Limitations")[2]
    assert "Licence of the weights: not recorded" in limits
    assert "its concepts" in limits and "is not recorded" in limits
    assert "chosen while looking at these scores: not recorded" in limits
    assert "git checkout" in card or "# the commit of the suite: not recorded" in card
    assert f'train "$BUNDLE/runs/last/recipe.yaml"\n    .venv/bin/python -m jobs export {lab.run} step=4' in card


def test_an_earlier_checkpoint_has_the_figures_of_its_step(lab: Lab, tmp_path: Path) -> None:
    made = build_release(lab.asked(step=2), tmp_path / "bundle", lab.export)
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    rows = rows_of(card)
    assert rows["Steps"] == ["2", "2 of 4 planned"]
    assert rows["Loss, last step"][1] == f"{read_metrics(lab.run)[1]['loss']:.4f}"
    assert "The checkpoint is of step 2 of 4 planned." in card
    assert "no evaluation of this checkpoint was found" in card and "none was run on this checkpoint" in card
    assert not (made.folder / "evaluation" / "step.json").exists()


def test_the_curves_are_drawn(released: Release) -> None:
    picture = Image.open(io.BytesIO((released.folder / "loss.png").read_bytes())).convert("RGB")
    assert picture.size == (1600, 640)
    pixels = np.asarray(picture).reshape(-1, 3)
    assert (np.abs(pixels.astype(int) - (0x22, 0x57, 0xC5)).sum(axis=1) < 30).sum() > 500  # the smoothed line


def test_markup_is_escaped() -> None:
    assert cell("a|b <i> [x](y) `z` $1") == r"a\|b \<i\> \[x\](y) \`z\` \$1"
    assert cell("one\ntwo\x1b[0m") == r"one two \[0m"
    assert [cell(value) for value in (None, "", " ", 0)] == ["not recorded", "not recorded", "not recorded", "0"]
    assert code("a`b|c") == "`a'b¦c`"
    assert table(("x", "n"), [("a", "1")]) == "| x | n |\n| --- | ---: |\n| a | 1 |"


def test_paths_and_hosts_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(
        "reading /home/ann/data/corpus.h5 and '/scratch/ann/a.tar' on node17, not node170\n"
    )
    (tmp_path / "y.json").write_text('{"url": "https://example.org/a/b", "rate": "MB/s", "lib": "/usr/lib/x.so"}')
    (tmp_path / "z.html").write_text('<img src="data:image/png;base64,/aaa/bbb/ccc="></div></p><a href="/home/ann/x">')
    (tmp_path / "w.bin").write_bytes(b"/home/ann/secret")
    lines = personal(tmp_path, ["x.log", "y.json", "z.html", "w.bin"], {"node17", ""})
    assert lines == ["path /home/ann/… in x.log, z.html", "path /scratch/ann/… in x.log", "host node17 in x.log"]


def test_a_run_without_an_end_is_released_too(moved: Lab, tmp_path: Path) -> None:
    for name in ("step.json", "environment.json"):
        (moved.run / name).unlink()
    made = build_release(replace(moved.asked(), shards="no"), tmp_path / "bundle", moved.export)
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert rows_of(card)["Loss, last step"][1] == "not recorded" and rows_of(card)["Layout"][1] == "not recorded"
