"""The recipe: what is refused, and that a saved one is the same one."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onevision.errors import InputError
from onevision.recipe import (
    CHOICES,
    Recipe,
    known_keys,
    layout_problems,
    load_recipe,
    recipe_dict,
    recipe_from,
    save_recipe,
)
from onevision.recipe_data import MixtureEntry

RECIPES = Path(__file__).parents[1] / "jobs" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_loads_and_comes_back_from_its_run_folder(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert path.parent.name.startswith(recipe.model.preset)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe_from(recipe_dict(recipe)) == recipe


def test_stages_are_chained_and_frozen_as_published() -> None:
    for size in ("tiny", "4b", "8b"):
        stages = [load_recipe(RECIPES / size / f"{name}.yaml") for name in ("stage0", "stage1", "stage1_5", "stage2")]
        assert [stage.train.init_from for stage in stages[1:]] == [stage.output for stage in stages[:-1]]
        assert [stage.model.freeze for stage in stages[1:]] == [["vision", "language"], [], []]
    middle = load_recipe(RECIPES / "8b" / "stage1_5.yaml")
    assert (middle.optimizer.lr, middle.optimizer.min_lr, middle.optimizer.weight_decay) == (1e-5, 1e-6, 0.01)
    assert (middle.optimizer.beta2, middle.optimizer.eps, middle.optimizer.clip_grad) == (0.95, 1e-5, 1.0)


def test_overrides_win_and_an_empty_value_is_an_empty_text() -> None:
    overrides = ["optimizer.lr=2e-5", "train.init_from=", "model.freeze=[vision]"]
    recipe = load_recipe(RECIPES / "8b" / "stage2.yaml", overrides)
    assert recipe.optimizer.lr == 2e-5
    assert recipe.train.init_from == ""
    assert recipe.model.freeze == ["vision"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'; the nearest is 'optimizer.lr'"),
        ("step=3", "unknown key 'step'; the nearest is"),
        ("train.steps=many", "train.steps: Value 'many'"),
        ("train.steps=0", "train.steps=0 must be at least 1"),
        ("train.threads=100000", "train.threads=100000 must be at most 4096"),
        ("train.hang_seconds=1e11", "train.hang_seconds=100000000000.0 must be at most 1000000000"),
        ("data.format=tfrecord", "data.format='tfrecord' is not one of records, parquet, webdataset, llava-json"),
        ("data.columns=[picture=x]", "data.columns: 'picture=x' is not one of image=NAME, caption=NAME"),
        ("data.columns=[image]", "data.columns: 'image' is not one of image=NAME"),
        ("optimizer.lr=.nan", "optimizer.lr=nan must be at least 0"),
        ("optimizer.beta2=1", "optimizer.beta2=1.0 is not between 0 and 1"),
        ("model.preset=9b", "model.preset='9b' is not one of tiny, mini, 140m, 0.6b, 1.7b, 4b, 8b"),
        ("model.freeze=[head]", "'head' is not one of vision, adapter, language"),
        ("model.freeze=[vision,adapter,language]", "nothing would be trained"),
        ("data.pack_part_samples=20000000", "data.pack_part_samples=20000000 must be at most 16777216"),
        ("data.decoder=dali_mixed", "decodes on the GPU, where its pixels stay: set data.resize=device"),
        ("data.decoder=dali data.resize=device", "data.decoder=dali resizes on the host: set data.resize=host"),
        ("data.hw_decoder_load=1.5", "data.hw_decoder_load=1.5 is not between 0 and 1"),
        ("data.min_pixels=3000000", "is above data.max_pixels"),
        ("optimizer.eps=0", "optimizer.eps=0 divides by 0"),
        ("optimizer.min_lr=1", "optimizer.min_lr=1.0 is above optimizer.lr"),
        ("train.global_batch_size=3 train.micro_batch_size=2", "is not a multiple of train.micro_batch_size=2"),
        ("parallel.tensor=0", "parallel.tensor=0 must be at least 1"),
        ("train.precision=fp16", "is not one of bf16, fp32, fp8"),
        ("train", "is not of the form key=value"),
        ("train=5", "train=5 is not a section"),
        ("concepts.quotas={}", "concepts.quotas={} has a mapping or a list where a single value belongs"),
        ("data.columns=[{}]", "data.columns=[{}] has a mapping or a list where a single value belongs"),
        ("parallel.stage_layers=[[1]]", "parallel.stage_layers=[[1]] has a mapping or a list where a single"),
        ("data.mixture=5", "data.mixture is not a list of entries"),
        ("data.mixture=[a]", "data.mixture is not a list of entries"),
        ("data.mixture.weight=2", "data.mixture is not a list of entries"),
        ("data.mixture=[{wieght:\t1}]", "unknown key 'data.mixture.wieght'; the nearest is 'data.mixture.weight'"),
        ("data.mixture=[{weight:\tx}]", "weight: Value 'x'"),
    ],
)
def test_what_cannot_work_is_one_line(override: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(RECIPES / "8b" / "stage2.yaml", override.split(" "))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mixture_comes_back_from_its_run_folder(tmp_path: Path) -> None:
    mixture = "data.mixture=[{corpus: a, packs: b, weight: 0.3}, {corpus: c, packs: d, shards: 's3://e', weight: 1}]"
    recipe = load_recipe(RECIPES / "8b" / "stage2.yaml", [mixture])
    assert recipe.data.mixture == [MixtureEntry("a", "b", weight=0.3), MixtureEntry("c", "d", "s3://e", weight=1)]
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe_from(recipe_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("entries", "lines"),
    [
        ([{"corpus": "a"}], ["data.mixture[0].packs is empty"]),
        (
            [{"corpus": "a", "packs": "b", "weight": float("nan")}, {"corpus": "a", "packs": "c", "weight": -1}],
            ["data.mixture[0].weight=nan must be a number of", "data.mixture[1].weight=-1.0 must be a number of"],
        ),
        (
            [{"corpus": "a", "packs": "b", "weight": 1, "epochs": 2}, {"corpus": "a", "packs": "c"}],
            ["data.mixture[0] has both weight=1.0 and epochs=2.0", "data.mixture[1] has no weight and others have"],
        ),
        ([{"corpus": "a", "packs": "b"}] * 2, ["data.mixture[1].packs='b' is named before"]),
    ],
)
def test_mixtures_that_cannot_be_are_told_all_at_once(entries: list[dict[str, object]], lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        recipe_from({"data": {"mixture": entries}})
    assert all(line in str(caught.value) for line in lines)
    assert str(caught.value).count(";") == len(lines) - 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: [", "cannot be read"),
        ("train:\n  steps: 3\n   lr: 4", "cannot be read: line 3, column 6: mapping values are not allowed"),
        ("- a", "is not a mapping"),
        ("trian:\n  steps: 1", "unknown key 'trian'; the nearest is 'train'"),
        ("train: 5", "train=5 is not a section"),
        ("extends: other.yaml", "other.yaml does not exist"),
        ("extends: recipe.yaml", "extend each other in a circle"),
    ],
)
def test_broken_files_are_one_line(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert line in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(known_keys()), st.text(max_size=20))
def test_any_value_is_taken_or_refused_in_one_line(key: str, value: str) -> None:
    try:
        recipe = load_recipe(RECIPES / "tiny" / "stage2.yaml", [f"{key}={value}"])
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(recipe, Recipe)


@pytest.mark.parametrize(
    ("overrides", "ranks", "line"),
    [
        ([], 8, None),
        ([], 16, "train.global_batch_size=8 is not a multiple of train.micro_batch_size=1 x 16 data-parallel"),
        (["train.global_batch_size=40"], 16, "set it to 32 or 48"),
        (["parallel.tensor=2"], 16, None),
        (["parallel.tensor=4", "parallel.pipeline=2"], 64, None),
        (["parallel.tensor=4", "parallel.pipeline=2"], 128, "x 16 data-parallel ranks"),
        (["parallel.tensor=4", "parallel.pipeline=2"], 12, "x parallel.pipeline=2 does not divide"),
    ],
)
def test_layout(overrides: list[str], ranks: int, line: str | None) -> None:
    problems = layout_problems(load_recipe(RECIPES / "8b" / "stage1.yaml", overrides), ranks)
    assert len(problems) == (line is not None)
    assert line is None or line in problems[0]


def test_every_choice_can_be_written_in_yaml_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: choices\n", encoding="utf-8")
    for key, choices in CHOICES.items():
        for choice in choices:
            beside = ["data.resize=device"] * (choice == "dali_mixed")  # which needs it
            recipe = load_recipe(tmp_path / "recipe.yaml", [*beside, f"{key}={choice}"])  # on, off, yes, no: booleans
            assert reduce(getattr, key.split("."), recipe) == choice
