"""One rank of a copy of the model reads; the others get the same batch, patches only where the vision tower is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from onevision.data.batch import PackedBatch
from onevision.data.loader import PackLoader
from onevision.errors import DataError
from onevision.model.device import Ranks, start
from onevision.recipe import Recipe
from onevision.training.inputs import open_inputs
from onevision.training.replica import join_replica
from tests.forks import forked

RANKS = 8  # two copies of tensor 2 x pipeline 2


def loader_for(recipe: Recipe) -> PackLoader:
    inputs = open_inputs(recipe)
    return PackLoader(
        inputs.sources,
        inputs.tokenizer,
        recipe.data,
        seed=recipe.seed,
        global_batch_size=recipe.train.global_batch_size,
        micro_batch_size=1,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
    )


def refuse(*_: Any) -> Iterator[list[PackedBatch]]:
    raise AssertionError("this rank is not to read")
    yield []


def broken(steps: Iterator[list[PackedBatch]]) -> Iterator[list[PackedBatch]]:
    yield next(steps)
    raise DataError("shard 7 is missing")


def check(recipe: Recipe, rank: int, folder: Path) -> None:
    """What a rank is given, against what it would read."""
    start(Ranks(rank, RANKS, rank, RANKS, f"file://{folder / 'rendezvous'}"), 1, parallel=recipe.parallel)
    replica = join_replica(recipe.parallel)
    loader = loader_for(recipe)
    expected = [loader.batches(step) for step in range(2)]
    iterate = loader.iterate
    first_stage = parallel_state.is_pipeline_first_stage()
    assert replica.reads == (first_stage and parallel_state.get_tensor_model_parallel_rank() == 0)
    if not replica.reads:
        loader.iterate = refuse
    for batches, own in zip(replica.share(loader, 0, 2), expected, strict=True):
        for batch, wanted in zip(batches, own, strict=True):
            for name, value in vars(wanted).items():
                found = getattr(batch, name)
                if name == "patches":
                    assert torch.equal(found, value if first_stage else value[:0])
                elif isinstance(value, torch.Tensor):
                    assert torch.equal(found, value), name
                else:
                    assert found == value, name
    if replica.reads:
        loader.iterate = lambda *steps: broken(iterate(*steps))
    shared = replica.share(loader, 0, 2)
    next(shared)
    try:
        next(shared)
    except DataError as error:
        assert str(error) == "shard 7 is missing"
    else:
        raise AssertionError("the error of the rank that reads did not reach this one")


def test_others_get_what_one_reads_and_its_errors(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(parallel={"tensor": 2, "pipeline": 2}, global_batch_size=4)
    with ExitStack() as stack:
        ranks = [stack.enter_context(forked(check, recipe, rank, tmp_path)) for rank in range(RANKS)]
        assert [rank.join() for rank in ranks] == [0] * RANKS, [rank.error for rank in ranks]
