"""Layouts against what training itself refuses."""

from __future__ import annotations

from itertools import islice

from onevision.model.layout import start_problems, training_problems
from onevision.planning.layouts import Layout, laid_out, layouts, refusal
from tests.planning.common import stage


def test_every_divisor_is_there_once() -> None:
    found = list(layouts(16))
    assert len(found) == len(set(found))
    assert {layout.pipeline for layout in found} == {1, 2, 4, 8, 16}
    assert {layout.tensor for layout in found} == {layout.context for layout in found} == {1, 2, 4, 8}
    assert all(16 % layout.model_ranks == 0 for layout in found)
    assert {layout.virtual_pipeline for layout in found if layout.pipeline > 1} == {1, 2, 4}
    assert {layout.virtual_pipeline for layout in found if layout.pipeline == 1} == {1}


def test_what_is_refused_is_what_training_refuses() -> None:
    recipe, gpus = stage(batch=48), 24
    kinds = set()
    for layout in islice(layouts(gpus), 0, None, 11):
        laid = laid_out(recipe, layout)
        problems = training_problems(laid, gpus)[: -len(start_problems(laid)) or None]
        assert bool(refusal(recipe, layout, gpus)) == bool(problems), layout
        kinds.add(bool(problems))
    assert kinds == {True, False}


def test_context_parallelism_shares_the_batch_among_fewer() -> None:
    recipe = stage(batch=16)
    assert "global batch" in refusal(recipe, Layout(), 32)
    assert not refusal(recipe, Layout(context=2), 32)
    odd = stage(batch=16, data={"sequence_length": 8190})
    assert "tokens of a pack" in refusal(odd, Layout(context=4), 32)


def test_interleaved_stages_need_micro_batches_by_the_stage() -> None:
    assert not refusal(stage(batch=16), Layout(pipeline=4, virtual_pipeline=3), 16)  # 4 micro-batches
    assert "with VP" in refusal(stage(batch=8), Layout(pipeline=4, virtual_pipeline=3), 16)
    assert "layers" in refusal(stage(batch=16), Layout(pipeline=16, virtual_pipeline=4), 16)


def test_a_recipe_has_the_whole_layout() -> None:
    recipe = stage(parallel={"tensor": 4, "split_vision": True, "pipeline": 2, "stage_layers": [12, 24]})
    parallel = laid_out(recipe, Layout(tensor=2, pipeline=4, context=8, virtual_pipeline=3)).parallel
    assert (parallel.tensor, parallel.pipeline, parallel.context, parallel.virtual_pipeline) == (2, 4, 8, 3)
    assert parallel.sequence and parallel.split_vision and not parallel.stage_layers
    alone = laid_out(recipe, Layout()).parallel
    assert not alone.sequence and not alone.split_vision
