"""The conversion jobs, as they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.__main__ import main as job
from jobs.facts import find
from onevision.convert.exporting import export
from onevision.recipe import save_recipe
from tests.convert.common import assert_equal, megatron_tensors, saved_run, tiny_data, tiny_recipe


def test_an_import_makes_the_run_folder_and_the_next_one_leaves_it(
    device: torch.device, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = saved_run(tmp_path / "trained", device)
    folder = export(trained, tiny_data(tmp_path), tmp_path / "exported").folder
    save_recipe(tiny_recipe(), tmp_path / "recipe.yaml")
    run = tmp_path / "runs" / "stage0"
    command = ["import", str(tmp_path / "recipe.yaml"), f"exported={folder}", f"output={run}"]
    assert job(command) == 0, capfd.readouterr().err
    assert_equal(megatron_tensors(run), megatron_tensors(trained))
    (facts,) = find(run.parent)
    assert facts.folder == run and facts.is_run and facts.finished and facts.stage == "stage0"
    made = (run / "step.json").stat().st_mtime_ns
    assert job(command) == 0, capfd.readouterr().err
    assert (run / "step.json").stat().st_mtime_ns == made
    assert sorted(path.name for path in run.parent.iterdir()) == ["log", "stage0"]
