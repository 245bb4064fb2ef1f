"""What a step is to be trained on, told without its images, and what a run was given."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.samples import run
from onevision.data.ledger import Plan, digest
from onevision.data.loader import PackLoader
from onevision.errors import DataError, InputError
from onevision.recipe import Recipe
from onevision.training.history import read_metrics
from onevision.training.inputs import open_inputs
from onevision.training.loop import train
from tests.data.test_loader import damage

MakeRecipe = Callable[..., Recipe]


def test_the_plan_is_what_the_loader_reads_on_any_number_of_ranks(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(global_batch_size=4)
    inputs = open_inputs(recipe)
    plan = Plan(inputs.sources, recipe.seed, 4)
    for ranks in (1, 2, 4):
        loaders = [
            PackLoader(
                inputs.sources,
                inputs.tokenizer,
                recipe.data,
                seed=recipe.seed,
                global_batch_size=4,
                micro_batch_size=1,
                dp_rank=rank,
                dp_size=ranks,
            )
            for rank in range(ranks)
        ]
        for step in (1, 2, 3, 8):  # from one epoch into the next
            batches = [batch for loader in loaders for batch in loader.batches(step - 1)]
            read = [number for batch in batches for number in batch.sample_ids.tolist()]
            assert sorted(read) == plan.samples(step).tolist()
            assert digest(read) == digest(plan.samples(step))


def test_a_digest_knows_a_multiset_in_any_order() -> None:
    assert digest([3, 1, 2]) == digest([1, 2, 3]) != digest([1, 2, 3, 3])
    assert digest([]) == digest([]) != digest([0])
    assert len(digest([2**40])) == 16


def test_the_samples_of_a_step_are_shown_and_those_of_all_steps_compared(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(steps=3)
    train(recipe)
    capsys.readouterr()
    assert run([recipe.output, "step=2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    rows = [json.loads(line) for line in (Path(recipe.output) / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == rows[1]["samples"]
    assert all(Path(shard).exists() for _, shard, _ in lines)
    assert set(Counter(category for *_, category in lines)) == set(rows[1]["loss_by_category"])
    assert run([recipe.output]) == 0
    assert capsys.readouterr().out == f"{recipe.output}: 3 steps, to 3: the samples of each are those planned\n"
    rows[2]["samples_digest"] = digest([0])
    (Path(recipe.output) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="of 3 steps 1 had other samples than planned: 3; packs or corpus"):
        run([recipe.output])
    with pytest.raises(InputError, match="step=4 is not one of the run's steps, 1 to 3"):
        run([recipe.output, "step=4"])


def test_damaged_samples_of_steps_without_a_row_are_counted_in_the_next_row(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=4, log_interval=3, checkpoint={"interval": 9})
    corpus = tmp_path / "corpus"
    shutil.copytree(recipe.data.corpus, corpus)
    recipe = replace(recipe, data=replace(recipe.data, corpus=str(corpus)))
    for row in range(10):
        damage(recipe.data, row, "json")
    train(recipe)
    rows = read_metrics(recipe.output)
    plan = Plan(open_inputs(recipe).sources, recipe.seed, recipe.train.global_batch_size)
    damaged = [int((plan.samples(step) < 10).sum()) for step in range(1, 5)]
    assert [row["step"] for row in rows] == [3, 4] and sum(damaged[:2])
    assert [row["skipped"] for row in rows] == [sum(damaged[:3]), sum(damaged[3:])]
