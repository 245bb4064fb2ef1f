"""Layouts against what training itself refuses."""

from __future__ import annotations

from onevision.model.layout import architecture_problems, training_problems
from onevision.model.presets import PRESETS
from onevision.planning.layouts import Layout, laid_out, layouts, refusal, trainable
from onevision.recipe import layout_problems
from tests.planning.common import stage


def test_every_divisor_is_there_once() -> None:
    found = list(layouts(16))
    assert len(found) == len(set(found))
    assert {layout.pipeline for layout in found} == {1, 2, 4, 8, 16}
    assert {layout.tensor for layout in found} == {layout.context for layout in found} == {1, 2, 4, 8}
    assert all(16 % layout.model_ranks == 0 for layout in found)


def test_what_is_refused_is_what_training_refuses() -> None:
    recipe, gpus = stage(batch=48), 24
    kinds = set()
    for layout in layouts(gpus):
        if layout.context > 1:
            continue
        laid = laid_out(recipe, layout)
        problems = layout_problems(laid, gpus) + architecture_problems(laid, PRESETS["8b"])
        assert bool(refusal(recipe, layout, gpus)) == bool(problems), layout
        kinds.add(bool(problems))
        if trainable(recipe, layout) and not problems:
            assert not training_problems(laid, gpus)
    assert kinds == {True, False}


def test_context_parallelism_shares_the_batch_among_fewer() -> None:
    recipe = stage(batch=16)
    assert "global batch" in refusal(recipe, Layout(), 32)
    assert not refusal(recipe, Layout(context=2), 32)
    odd = stage(batch=16, data={"sequence_length": 8190})
    assert "tokens of a pack" in refusal(odd, Layout(context=4), 32)


def test_only_data_parallel_layouts_are_trained_so_far() -> None:
    recipe = stage()
    assert trainable(recipe, Layout(micro_batch=4, recompute="full"))
    assert not any(trainable(recipe, layout) for layout in (Layout(tensor=2), Layout(pipeline=2), Layout(context=2)))
