"""Other loaders read an export in processes of their own and compute what the checkpoint computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.convert import export_here
from onevision.convert import parity
from onevision.convert.exporting import export
from onevision.convert.parity import CASES, OWN, Consumer, check_parity, consumer_answers, make_prompts
from onevision.errors import DataError
from onevision.recipe import Recipe
from tests.convert.common import saved_run, tiny_data


@pytest.fixture(scope="module")
def exported(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run folder and its export."""
    root = tmp_path_factory.mktemp("consumers")
    run = saved_run(root / "run", device)
    return run, export(run, tiny_data(root / "tokenizer"), root / "hf").folder


@pytest.fixture(scope="module")
def report(exported: tuple[Path, Path]) -> dict[str, Any]:
    return check_parity(*exported, threads=1)


@pytest.mark.parametrize("name", [OWN, "transformers", "transformers4", "nemo-automodel"])
def test_a_loader_computes_what_the_checkpoint_computes(report: dict[str, Any], name: str) -> None:
    if name in report["not_checked"]:
        pytest.skip(report["not_checked"][name])
    rows = {row["case"]: row for row in report["rows"] if row["consumer"] == name}
    assert list(rows) == list(CASES)
    for case, row in rows.items():
        assert row["met"] and row["difference"] < 1e-4 and row["largest"] > 1, row
        generates = name != "nemo-automodel" and not (case.endswith("right") and name != OWN)
        assert row["same_tokens"] is (True if generates else None), row
    versions = report["loaders"].get(name, {})
    own_class = "nemo_automodel." if name == "nemo-automodel" else "transformers_modules."
    assert name == OWN or versions["class"].startswith(own_class)
    assert name != "transformers4" or versions["transformers"].startswith("4.")
    assert name != "transformers" or versions["transformers"].startswith("5.")


def test_the_report_stands_beside_the_weights(exported: tuple[Path, Path], report: dict[str, Any]) -> None:
    _, folder = exported
    assert json.loads((folder / "parity.json").read_text()) == report and report["met"]
    text = (folder / "parity.txt").read_text()
    assert all(f"not checked: {name}" in text for name in report["not_checked"])
    assert "several images" in text and "transformers 5." in text
    assert [path.name for path in folder.parent.glob(".*parity*")] == []


def test_other_weights_are_found(
    exported: tuple[Path, Path], report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = exported
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = next(other.glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["visual.merger.ln_q.bias"] += 0.01
    save_file(tensors, weights)
    monkeypatch.setattr(parity, "consumers", lambda: ([], {"transformers": "left out"}))
    found = check_parity(run, other, threads=1)
    assert not found["met"] and report["met"]
    assert {row["case"] for row in found["rows"] if row["met"]} == {"text only"}


def test_a_loader_that_fails_is_one_line(exported: tuple[Path, Path]) -> None:
    _, folder = exported
    with pytest.raises(DataError, match="hf could not be used by broken: exit code 1$"):
        consumer_answers(
            Consumer("broken", "transformers", Path("/bin/false")), folder, make_prompts(1024, 5), 1, "cpu"
        )


def test_a_folder_that_differed_is_compared_again_and_one_that_did_not_is_not(
    exported: tuple[Path, Path], report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = exported
    recipe = Recipe(data=tiny_data(run.parent / "tokenizer"))
    compared: list[Path] = []

    def differs(checkpoint: Path, output: Path, threads: int) -> dict[str, Any]:
        compared.append(output)
        return {"met": False}

    monkeypatch.setattr(parity, "check_parity", differs)
    assert "several images" in export_here(recipe, run, None, folder) and not compared
    file = folder / parity.REPORT
    kept = file.read_text()
    try:
        file.write_text(json.dumps(report | {"met": False}))
        with pytest.raises(DataError, match="other logits than the checkpoint's"):
            export_here(recipe, run, None, folder)
    finally:
        file.write_text(kept)
    assert compared == [folder]
