"""What is refused before a job is queued: everything at once, each with its value and what to change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.preflight import (
    attention_problems,
    partition_problems,
    preflight,
    smaller_layouts,
    time_problems,
    waiting_keys,
    waiting_steps,
)
from jobs.sites import Site
from jobs.slurm import Partition
from onevision.errors import InputError
from onevision.evaluation.harness.places import MODELS, result_file, results_folder
from onevision.model.presets import PRESETS
from onevision.recipe import Recipe, recipe_from
from onevision.training.checkpoint_files import CHECKPOINT_FILE, commit, step_folder
from onevision.training.inputs import open_inputs
from onevision.training.memory import checkpoint_bytes, memory_estimate
from onevision.training.run import open_run
from tests.training.conftest import data_values, make_recipe, recipe_values

__all__ = ["data_values", "make_recipe", "recipe_values"]

MakeRecipe = Callable[..., Recipe]
CPUS = Site(name="here", scheduler="none", tasks_per_node=2)
A800 = Site(name="a800", scheduler="none", gpu_type="A800", gpus_per_node=8, gpu_memory_gb=85.9)
PARTITION = Partition(name="gpu", minutes=24 * 60, nodes=16, available=15, gpus_per_node=8)


def start_weights(run: Path, preset: str = "tiny") -> Path:
    """A run folder with a checkpoint whose content nobody reads here."""
    written = run / "checkpoints" / ".step_00000000.tmp"
    written.mkdir(parents=True)
    (written / "__0_0.distcp").write_bytes(bytes(1000))
    return commit(written, run, 0, PRESETS[preset], keep=1)


def test_nothing_to_refuse(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    start_weights(tmp_path / "stage0")
    recipe = make_recipe(init_from=str(tmp_path / "stage0"))
    check = preflight(recipe, CPUS, nodes=1)
    assert check.problems == []
    check.refuse()
    assert check.text == "a checkpoint takes 29.6 MB, checkpoint.keep=3 are kept"
    assert not Path(recipe.output).exists()
    assert "together" in preflight(replace(recipe, train=replace(recipe.train, global_batch_size=8)), A800, 1).text


def test_six_things_wrong_are_six_problems(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    open_run(make_recipe(optimizer={"lr": 2e-3}), {})
    (step_folder(start_weights(tmp_path / "stage0").parents[1], 0) / "__0_0.distcp").write_bytes(b"")
    recipe = make_recipe(
        precision="fp8",
        global_batch_size=20,
        init_from=str(tmp_path / "stage0" / "checkpoints" / "step_00000000"),
        data={"sequence_length": 448, "packs": make_recipe().data.packs},
        checkpoint={"keep": 10**9},
    )
    check = preflight(recipe, A800, nodes=2)
    lines = [
        "train.global_batch_size=20 is not a multiple of train.micro_batch_size=1 x 16 data-parallel ranks: set it to",
        "train.precision=fp8: A800 of site a800 is Ampere (compute capability 8.0) and has no FP8 units, which begin "
        "with 8.9: use train.precision=bf16, or another site",
        "packs.h5 was made with sequence_length=256, this run has 448: run `make pack` again",
        "__0_0.distcp has 0 bytes instead of 1000",
        "holds a run made with other settings: data.sequence_length=448 (was 256)",
        "GB are free on the disk of",
    ]
    assert len(check.problems) == len(lines) == 6
    for problem, line in zip(check.problems, lines, strict=True):
        assert line in problem
        assert "\n" not in problem
    with pytest.raises(InputError, match="6 problems, nothing was queued:\n"):
        check.refuse()


def test_everything_that_is_missing_is_told(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folders = {key: str(tmp_path / key) for key in ("tokenizer", "corpus", "packs")}
    recipe = make_recipe(data=folders, init_from=str(tmp_path / "stage0"))
    problems = preflight(recipe, CPUS, nodes=1).problems
    assert len(problems) == 4
    for problem, name in zip(problems, ("tokenizer.json", "corpus.h5", "packs.h5", "stage0"), strict=True):
        assert f"{name} " in problem
    made = [*folders.values(), str(tmp_path / "stage0")]
    assert preflight(recipe, CPUS, nodes=1, waits_for=made).problems == []


def test_inputs_in_folders_that_are_made_are_waited_for(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(init_from="runs/a/stage0/checkpoints/step_00000000", data={"tokenizer": "made/tokenizer"})
    assert waiting_keys(recipe, ["runs/a/stage0", "mad"]) == {"train.init_from"}
    assert waiting_keys(recipe, [str(Path("made").absolute())]) == {"data.tokenizer"}


def test_a_checkpoint_of_another_size_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    start_weights(tmp_path / "stage0", "4b")
    (problem,) = preflight(make_recipe(init_from=str(tmp_path / "stage0")), CPUS, nodes=1).problems
    assert "is a checkpoint of model 4b: vision.num_layers=24 instead of 3" in problem


def test_the_content_of_a_checkpoint_is_not_read(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = start_weights(tmp_path / "stage0")
    recipe = make_recipe(init_from=str(tmp_path / "stage0"))
    (folder / "__0_0.distcp").write_bytes(b"x" * 1000)
    assert preflight(recipe, CPUS, nodes=1).problems == []
    text = (folder / CHECKPOINT_FILE).read_text(encoding="utf-8")
    (folder / CHECKPOINT_FILE).write_text(text.replace('"step": 0', '"step": 1'), encoding="utf-8")
    (problem,) = preflight(recipe, CPUS, nodes=1).problems
    assert "holds no checkpoint" in problem


def test_other_inputs_in_the_same_run_folder_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    open_run(recipe, open_inputs(recipe).fingerprints)
    assert preflight(recipe, CPUS, nodes=1).problems == []
    open_run(make_recipe("other"), {**open_inputs(recipe).fingerprints, "packs": "of before"})
    (problem,) = preflight(make_recipe("other"), CPUS, nodes=1).problems
    assert "packs=" in problem and "(was 'of before')" in problem
    assert preflight(make_recipe("other"), CPUS, nodes=1, waits_for=[recipe.data.packs]).problems == []


def test_another_layout_goes_on_in_the_same_folder(make_recipe: MakeRecipe) -> None:
    open_run(make_recipe(), {})
    problems = preflight(make_recipe(parallel={"tensor": 2}), CPUS, nodes=1).problems
    assert not any("parallel.tensor=2 (was 1)" in problem for problem in problems)


def test_no_output(make_recipe: MakeRecipe) -> None:
    assert preflight(replace(make_recipe(), output=""), CPUS, nodes=1).problems == [
        "output is empty: name the run folder with output=runs/NAME"
    ]


def test_room_of_checkpoints_that_are_there_is_counted(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    size = checkpoint_bytes(make_recipe())
    recipe = make_recipe(checkpoint={"keep": shutil.disk_usage(tmp_path).free // size + 1000})
    (before,) = preflight(recipe, CPUS, nodes=1).problems
    assert f"{recipe.checkpoint.keep} checkpoints and the next one, 29.6 MB each, need" in before
    assert f"make room, set another output, or lower checkpoint.keep={recipe.checkpoint.keep}" in before
    there = step_folder(recipe.output, 2) / "__0_0.distcp"
    there.parent.mkdir(parents=True)
    with there.open("wb") as file:
        file.truncate(2000 * size)  # a hole: no room is taken
    assert preflight(recipe, CPUS, nodes=1).problems == []


def test_checkpoints_that_wait_for_their_evaluation_need_room_too(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_weights(tmp_path / "stage0")
    asked = {"tasks": ["mmstar"], "interval": 2}
    recipe = make_recipe(
        steps=10, checkpoint={"interval": 1, "keep": 3}, evaluation=asked, init_from=str(tmp_path / "stage0")
    )
    size = checkpoint_bytes(recipe)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7 * size - 1))
    (problem,) = preflight(recipe, CPUS, nodes=1).problems  # steps 2, 4 and 6 beside 8, 9 and 10, and the next one
    assert "3 checkpoints, 3 that wait for their evaluation and the next one, 29.6 MB each" in problem
    assert problem.endswith("lower checkpoint.keep=3 or raise evaluation.interval=2")
    answered = result_file(results_folder(recipe.output, MODELS[0], 4), "mmstar")
    answered.parent.mkdir(parents=True)
    answered.write_text("{}")
    check = preflight(recipe, CPUS, nodes=1)
    assert check.problems == []
    assert "keep=3 are kept, and up to 2 more until they have answered evaluation.tasks" in check.text
    assert waiting_steps(make_recipe(steps=10, evaluation=asked | {"interval": 0})) == []
    assert waiting_steps(make_recipe(steps=10)) == []


def test_memory_names_the_knobs_that_help(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(global_batch_size=32, micro_batch_size=2, precision="bf16", data={"sequence_length": 8192})
    recipe = replace(recipe, model=replace(recipe.model, preset="8b"))
    big = [line for line in preflight(recipe, A800, nodes=2).problems if line.startswith("a GPU needs")]
    assert len(big) == 1
    assert "A800 of site a800 has 85.9 GB: set model.recompute=full (is none), lower train.micro_batch_size=2" in big[0]
    assert ", set parallel.tensor=2 parallel.sequence=true (about 80.6 GB), set parallel.context=8 (about" in big[0]
    assert big[0].endswith("GB), or use larger GPUs")
    assert not any("a GPU needs" in line for line in preflight(recipe, replace(A800, gpu_memory_gb=0), 2).problems)
    roomy = replace(A800, gpu_memory_gb=500)
    assert not any("a GPU needs" in line for line in preflight(recipe, roomy, 2).problems)


def of_8b(parallel: dict[str, object], recompute: str = "none") -> Recipe:
    return recipe_from(
        {
            "model": {"preset": "8b", "recompute": recompute},
            "train": {"global_batch_size": 16},
            "data": {"max_pixels": 200_704},
            "parallel": parallel,
        }
    )


def test_attention_for_hopper_is_refused_where_the_site_names_another_chip() -> None:
    recipe = recipe_from({"model": {"attention": "flash_attn_4"}})
    assert attention_problems(recipe, A800) == [
        "model.attention=flash_attn_4 is for Hopper (compute capability 9.0), and A800 of site a800 has 8.0: use "
        "model.attention=auto, or another site"
    ]
    for site in (replace(A800, gpu_type="H100"), CPUS):
        assert attention_problems(recipe, site) == []
    assert attention_problems(recipe_from({}), A800) == []


@pytest.mark.parametrize(
    ("recompute", "kinds"), [("none", {"tensor", "context"}), ("full", {"tensor", "pipeline"})]
)  # what context ranks share is little with recomputation, what many micro-batches keep on the first stage much without
def test_layouts_that_are_advised_need_what_is_said(recompute: str, kinds: set[str]) -> None:
    recipe = of_8b({}, recompute)
    total = memory_estimate(recipe, 16).total
    found = dict(smaller_layouts(recipe, A800, total, 16, None))
    assert all(size < 0.9 * total for size in found.values())
    assert {settings.partition("=")[0].removeprefix("parallel.") for settings in found} == kinds
    for settings, size in found.items():
        overrides = dict(part.removeprefix("parallel.").split("=") for part in settings.split())
        parallel = {key: True if value == "true" else int(value) for key, value in overrides.items()}
        assert memory_estimate(of_8b(parallel, recompute), 16).total == size <= A800.gpu_memory_gb * 1e9
        half = {key: value // 2 if key in kinds else value for key, value in parallel.items()}
        if any(half[key] > 1 for key in kinds & half.keys()):  # it is the first that fits
            assert memory_estimate(of_8b(half, recompute), 16).total > A800.gpu_memory_gb * 1e9


def test_only_layouts_that_can_be_are_advised() -> None:
    recipe = of_8b({"tensor": 8})
    total = memory_estimate(recipe, 8).total
    found = smaller_layouts(recipe, A800, total, 8, None)  # no more ranks than these
    assert [settings for settings, _ in found] == ["parallel.sequence=true"]
    assert smaller_layouts(of_8b({"tensor": 8, "sequence": True}), A800, total, 8, None) == []
    given = of_8b({"pipeline": 2, "stage_layers": [12, 24]}, "full")
    settings = [name for name, _ in smaller_layouts(given, A800, memory_estimate(given, 16).total, 16, None)]
    assert any(name.startswith("parallel.pipeline=4 parallel.stage_layers=[]") for name in settings)


def test_a_layout_that_cannot_be_is_told_without_its_memory(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(global_batch_size=16, parallel={"pipeline": 2, "stage_layers": [3]})
    check = preflight(recipe, A800, nodes=2)
    assert any("parallel.stage_layers=[3]: give 2 numbers" in problem for problem in check.problems)
    assert not any("GPU" in note for note in check.notes)


@pytest.mark.parametrize(
    ("site", "nodes", "minutes", "line"),
    [
        (A800, 16, 1440, None),
        (A800, 17, 60, "nodes=17 is above the 16 nodes of partition gpu: use at most 16"),
        (replace(A800, gpus_per_node=16), 1, 60, "gpus_per_node=16 of site a800 is above the 8 that each node of"),
        (A800, 1, 1501, "the time limit 1-01:01:00 is above MaxTime=1-00:00:00 of partition gpu: lower it"),
        (A800, 1, 6, "the time limit 0-00:06:00 leaves no time to train before the signal to save, signal_seconds=300"),
    ],
)
def test_partition(site: Site, nodes: int, minutes: int, line: str | None) -> None:
    problems = partition_problems(site, nodes, PARTITION, minutes)
    assert len(problems) == (line is not None)
    assert line is None or line in problems[0]


def test_a_partition_without_a_limit() -> None:
    assert partition_problems(A800, 1, replace(PARTITION, minutes=None), 10**6) == []


def test_a_slurm_that_cannot_be_asked_is_a_problem_among_others(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = make_recipe(global_batch_size=3)
    monkeypatch.setenv("PATH", str(tmp_path))
    problems = preflight(recipe, replace(CPUS, scheduler="slurm"), nodes=1).problems
    assert len(problems) == 2
    assert problems[1] == "scontrol is not on this machine: run on a login node of the cluster"


def test_no_nodes() -> None:
    assert preflight(Recipe(), CPUS, nodes=0).problems == ["nodes=0 must be at least 1"]


def test_it_needs_no_torch() -> None:
    code = "import sys, jobs.preflight; print({'torch', 'megatron', 'transformers'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize(("minutes", "refused"), [(11, True), (12, False)])
def test_a_time_limit_must_leave_time_to_train(minutes: int, refused: bool) -> None:
    assert bool(time_problems(Site(signal_seconds=300), minutes)) is refused
