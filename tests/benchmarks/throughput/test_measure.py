"""The figures of a row fit together; it is measured on the CPU with the tiny model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.throughput.__main__ import OWN, main, specifications
from benchmarks.throughput.measure import Settings, has_packs, measure_training
from benchmarks.throughput.report import figures
from benchmarks.throughput.rows import measured_apart
from benchmarks.throughput.tries import gpu_memory, stage_recipe, training_tries, with_micro_batches
from jobs.__main__ import main as job
from onevision.errors import InputError
from onevision.files import read_json
from onevision.model.device import Ranks
from onevision.recipe import Recipe

SHORT = ["data.packs=no/packs", "data.sequence_length=256", "train.threads=1", "train.peak_tflops=0.1"]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return with_micro_batches(stage_recipe("tiny", "stage1_5", SHORT), 1, 2)


@pytest.fixture(scope="module")
def row(recipe: Recipe) -> dict[str, Any]:
    settings = Settings(warmup=1, steps=3, profiled=1)
    return {"name": "stage1_5"} | measure_training(recipe, Ranks(), settings)


def test_rates_times_seconds_are_amounts(row: dict[str, Any]) -> None:
    assert row["tokens_per_second_per_gpu"] * row["seconds"] == pytest.approx(row["tokens"])
    assert row["slots_per_second_per_gpu"] * row["seconds"] == pytest.approx(row["slots"])
    assert row["samples_per_second"] * row["seconds"] == pytest.approx(row["samples"])
    assert row["slots"] == 3 * 2 * 256 > row["tokens"]
    assert row["mfu"] == pytest.approx(row["model_flops"] / (0.1e12 * row["seconds"]))
    assert row["hfu"] == pytest.approx(row["hardware_flops"] / (0.1e12 * row["seconds"]))
    assert row["mfu"] < row["hfu"]


def test_phases_sum_to_the_steps_and_name_every_part(row: dict[str, Any]) -> None:
    mean = sum(row["phases"].values())
    assert row["step_seconds"]["min"] <= mean * (1 + 1e-9)
    assert mean <= row["step_seconds"]["max"] * (1 + 1e-9)
    assert mean * row["steps"] <= row["seconds"]
    assert set(row["phases"]) == {
        "data",
        "zeroing gradients",
        "embedding",
        "vision",
        "adapter",
        "language",
        "loss",
        "loss backward",
        "language backward",
        "adapter backward",
        "vision backward",
        "reducing gradients",
        "optimizer",
        "other",
    }


def test_the_loss_is_that_of_a_model_that_knows_nothing(row: dict[str, Any]) -> None:
    assert row["finite"] and 6 < row["loss_first"] < 9  # about log(1024)


def test_the_profiler_finds_the_products(row: dict[str, Any]) -> None:
    assert row["kernels"]["shares"]["GEMM"] > 0
    assert len(row["kernels"]["top"]) == 15


def test_figures_stand_beside_their_references(row: dict[str, Any]) -> None:
    found = {figure.measure: figure for figure in figures([row])}
    assert found["model FLOP/s (MFU)"].ratio == pytest.approx(row["mfu"])
    assert found["real tokens"].ratio == pytest.approx(row["tokens"] / row["slots"])


def test_a_recipe_whose_packs_are_missing_is_measured_with_synthetic_ones(recipe: Recipe, row: dict[str, Any]) -> None:
    assert not has_packs(recipe)
    assert row["data"].startswith("synthetic")


def test_tries_go_from_nothing_to_everything_recomputed(recipe: Recipe) -> None:
    tries = training_tries(recipe, "")
    assert [entry.model.recompute for entry in tries] == ["none", "selective", "selective", "full"]
    with pytest.raises(InputError, match="recompute"):
        training_tries(recipe, "model.recompute=some")
    assert [entry.train.micro_batch_size for entry in tries] == [1, 1, 1, 1]
    _, graphs = next(specifications(OWN | {"model": "tiny", "rows": "graphs"}, [], Path("rows")))
    assert [entry["performance"]["cuda_graphs"] for entry in graphs["recipes"]] == [True, True]
    assert [entry["model"]["recompute_modules"] for entry in graphs["recipes"]] == [["core_attn"], ["activation"]]


def test_a_larger_micro_batch_is_tried_first_where_there_is_room_for_it() -> None:
    recipe = with_micro_batches(stage_recipe("1.7b", "stage1_5", []), 1, 4)
    for memory, sizes in ((80 << 30, [1]), (143_771 << 20, [2, 1]), (400 << 30, [4, 1])):
        tries = training_tries(recipe, "", memory)
        assert [entry.train.micro_batch_size for entry in tries] == [*sizes, 1, 1, 1]
        assert [entry.model.recompute for entry in tries[: len(sizes)]] == ["none"] * len(sizes)
        assert {entry.train.global_batch_size for entry in tries} == {4}


def test_the_driver_is_asked_once_for_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, driver = tmp_path / "asked", tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\necho asked >> {asked}\necho 143771\necho 143771\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    gpu_memory.cache_clear()
    try:
        own = OWN | {"model": "tiny", "rows": "stage1,stage1_5", "tries": "model.recompute=none"}
        assert len(list(specifications(own, [], Path("rows")))) == 2
        assert gpu_memory() == 143_771 << 20 and asked.read_text() == "asked\n"
        gpu_memory.cache_clear()
        driver.write_text("#!/bin/sh\necho '[N/A]'\n")
        assert main([f"out={tmp_path}"]) == 2
        assert capsys.readouterr().err.startswith("error: nvidia-smi does not tell the GPU's memory (")
    finally:
        gpu_memory.cache_clear()


def test_a_row_that_fails_is_told_and_the_next_is_measured(tmp_path: Path) -> None:
    asked = {"kind": "training", "recipes": [{"name": 1, "x": 2}], "settings": {}}
    row = measured_apart("broken", asked, tmp_path, 120)
    assert "unknown key" in row["failed"]
    assert read_json(tmp_path / "broken.json") == row


def test_an_unknown_row_or_peer_is_refused(tmp_path: Path) -> None:
    for wrong in ({"rows": "stage3"}, {"rows": "peers", "peers": "nobody"}):
        with pytest.raises(InputError, match="is not one of"):
            list(specifications(OWN | {"model": "tiny"} | wrong, [], tmp_path))


def test_the_command_leaves_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model=tiny", "rows=language", "warmup=1", "steps=1", "micro_batches=1", f"out={tmp_path}", *SHORT]
    assert main(settings) == 0
    content = read_json(tmp_path / "throughput.json")
    assert content["runs"][0]["phases"] and content["rows"][0]["path"] == "language alone, tiny"
    assert (tmp_path / "throughput.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "ROW {" in printed and "beside their references" in printed


def test_the_job_measures_a_stage_on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    settings = ["model=tiny", "peers=none", "warmup=1", "steps=1", "processes=2", "profile=trace", *SHORT]
    assert job(["bench", "stages=stage1", f"out={tmp_path}", "data=synthetic", *settings]) == 0
    runs = read_json(tmp_path / "throughput.json")["runs"]
    assert [run["stage"] for run in runs] == ["stage1"]
    assert all(run["layout"]["gpus"] == 2 and run["slots"] == 512 for run in runs)
    assert len(runs[0]["files"]) == 1 and len(list((tmp_path / "rows" / "stage1").iterdir())) == 2
    assert os.environ.get("RANK") is None
