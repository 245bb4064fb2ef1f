"""Predicted times, redone by hand, and how they answer to the layout and the hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onevision.model.presets import PRESETS
from onevision.model.stages import stage_layers
from onevision.planning.hardware import GPUS, Gpu, with_figures
from onevision.planning.layouts import Layout, laid_out
from onevision.planning.model import Prediction, predict
from onevision.training.memory import memory_estimate, parameter_counts
from tests.planning.common import PACKS, stage

A800 = GPUS["a800"]
COUNT = 8_527_214_624  # parameters


def predicted(layout: Layout | None = None, gpus: int = 128, batch: int = 128, gpu: Gpu = A800) -> Prediction:
    return predict(stage(batch), layout or Layout(recompute="full"), gpus, gpu, PACKS)


def test_8b_by_hand() -> None:
    parts = predicted().parts
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288
    products = 2 * 8192 * (36 * layer * 4 + 151936 * 4096 * 3)
    assert parts["products"] == pytest.approx(products / (312e12 * 0.70))
    pad = 8192 - 9 * 750
    pairs = 9 * 750 * 751 / 2 + pad * (pad + 1) / 2
    assert parts["attention"] == pytest.approx(4 * 4096 * 36 * pairs * 4 / (312e12 * 0.40))
    assert parts["data-parallel"] == pytest.approx(6 * COUNT * 127 / 128 / (100e9 * 0.80))
    assert parts["optimizer"] == pytest.approx((4 + 34 / 128) * COUNT / (2000e9 * 0.80))
    assert parts["data"] == pytest.approx(9 * 2200 * 588 * 4 / 20e9)
    computing = sum(parts[name] for name in ("products", "attention", "vision", "element-wise"))
    assert parts["waiting"] == pytest.approx(0.05 * computing)
    assert predicted().seconds == pytest.approx(sum(parts.values()))


def test_a_gpu_alone_talks_to_nobody() -> None:
    parts = predicted(gpus=1, batch=1).parts
    for name in ("tensor", "context", "pipeline", "bubble", "data-parallel", "waiting"):
        assert parts[name] == 0


def test_more_micro_batches_share_the_end_of_a_step() -> None:
    one, four = predicted(), predicted(batch=512)
    for name in ("products", "attention", "vision", "element-wise"):
        assert four.parts[name] == pytest.approx(4 * one.parts[name])
    for name in ("data-parallel", "optimizer"):
        assert four.parts[name] == one.parts[name]
    assert four.tokens_per_gpu > one.tokens_per_gpu


def test_a_bubble_is_one_micro_batch_of_every_other_stage() -> None:
    """Four stages take as long for a micro-batch as one GPU that does it all, but for what they send."""
    whole = predicted(gpus=1, batch=1)
    four = predicted(Layout(pipeline=4, recompute="full"), gpus=4, batch=1)
    computing = ("products", "attention", "vision", "element-wise")
    sent = 4 * four.parts["pipeline"]
    total = sum(four.parts[name] for name in (*computing, "pipeline")) + four.bubble
    assert total == pytest.approx(sum(whole.parts[name] for name in computing) + sent)
    many = predicted(Layout(pipeline=4, recompute="full"), gpus=4, batch=64)
    assert many.bubble == pytest.approx(four.bubble)


def test_vision_and_head_are_on_the_stages_at_the_ends() -> None:
    """A step lasts as its slowest stage, which the layers of each are chosen to make fast."""
    layout = Layout(pipeline=4, recompute="full")
    recipe = stage(64)
    layers = stage_layers(laid_out(recipe, layout), PRESETS["8b"])
    found = predict(recipe, layout, 4, A800, PACKS)
    whole = predicted(gpus=1, batch=64)
    products = whole.parts["products"]
    head = sum(term.seconds for term in whole.terms if term.what == "head")
    slowest = found.parts["products"]
    options = [count / 36 * (products - head) + head * (place == 3) for place, count in enumerate(layers)]
    assert any(slowest == pytest.approx(option) for option in options)
    assert layers[0] < max(layers) and sum(layers) == 36
    even = predict(recipe, replace(layout, recompute="none"), 4, A800, PACKS)
    assert even.seconds < found.seconds


def test_more_parts_a_stage_are_smaller_bubbles_and_more_messages() -> None:
    """Layers divide into the parts of each stage as into the stages, but for the rounding of one layer."""
    plain = predicted(Layout(pipeline=2, recompute="full"), gpus=2, batch=16)
    virtual = predicted(Layout(pipeline=2, virtual_pipeline=2, recompute="full"), gpus=2, batch=16)
    assert virtual.bubble == pytest.approx(plain.bubble / 2, rel=0.1)
    assert virtual.parts["pipeline"] == pytest.approx(2 * plain.parts["pipeline"])


def test_tensor_and_context_parallelism_divide_the_work_and_talk() -> None:
    one = predicted(gpus=8, batch=8)
    tensor = predicted(Layout(tensor=4, recompute="full"), gpus=8, batch=8)
    context = predicted(Layout(context=4, recompute="full"), gpus=8, batch=8)
    for other in (tensor, context):  # a quarter of a pack's work, four times as many packs
        assert other.parts["products"] == pytest.approx(one.parts["products"])
    assert tensor.parts["vision"] == pytest.approx(one.parts["vision"])
    copies = 1 + 550 / 1024 * 3 / 4  # chunks of 1,024 tokens, images of 550
    assert context.parts["vision"] == pytest.approx(copies * one.parts["vision"])
    assert context.hardware_flops > one.hardware_flops
    language = 8192 * 4096 * 36 * 14 * 2 * 3 / 4
    vision = 9 * 2201 * 1024 * 24 * 12 * 2 * 3 / 4
    assert tensor.parts["tensor"] == pytest.approx(4 * (language + vision) / (200e9 * 0.75))
    assert tensor.parts["context"] == 0
    keys = 3 * 8192 / 4 * 3 * 2 * 1024 * 36 * 2 / (200e9 * 0.75)  # gathered, gathered again, their gradients scattered
    assert context.parts["context"] == pytest.approx(4 * keys)
    patches = 9 * 2200 * 588 * 4
    assert context.parts["data"] == pytest.approx(4 * patches * (1 / 20e9 + 1 / (200e9 * 0.75)))


def test_a_split_vision_tower_sends_image_tokens_and_gradients() -> None:
    layout = Layout(tensor=4, recompute="full")
    divided = predicted(layout, gpus=8, batch=8)
    split = predict(stage(8, parallel={"tensor": 2, "split_vision": True}), layout, 8, A800, PACKS)
    language = 4 * 8192 * 4096 * 36 * 14 * 2 * 3 / 4
    images = 4 * 9 * 550 * 4096 * 2 * 3 / 4
    counts = parameter_counts(PRESETS["8b"])
    vision = counts["vision"] + counts["adapter"]
    assert split.parts["tensor"] == pytest.approx((language + images + 8 * vision * 3 / 4) / (200e9 * 0.75))
    assert split.parts["vision"] == pytest.approx(divided.parts["vision"])
    assert split.parts["element-wise"] < divided.parts["element-wise"] * 1.1
    assert split.parts["optimizer"] > divided.parts["optimizer"]


def test_frozen_weights_need_no_gathered_inputs() -> None:
    layout, freeze = Layout(tensor=4), ["language", "vision"]
    frozen = predict(stage(8, model={"preset": "8b", "freeze": freeze}), layout, 8, A800, PACKS)
    language, vision = 8192 * 4096 * 36 * 8, 9 * 2201 * 1024 * 24 * 4  # vision is frozen: forward alone
    assert frozen.parts["tensor"] == pytest.approx(4 * (language + vision) * 2 * 3 / 4 / (200e9 * 0.75))
    trained = predicted(layout, gpus=8, batch=8)
    assert frozen.parts["products"] == pytest.approx(trained.parts["products"] * 2 / 3)
    assert frozen.parts["data-parallel"] < trained.parts["data-parallel"] / 50  # the adapter's gradients alone


def test_the_network_is_between_nodes_only() -> None:
    slow = with_figures(A800, {"network": 1.0}, "test")
    assert predicted(gpus=8, batch=8, gpu=slow).seconds == predicted(gpus=8, batch=8).seconds
    ratio = predicted(gpu=slow).parts["data-parallel"] / predicted().parts["data-parallel"]
    assert ratio == pytest.approx(100)
    assert predicted(gpu=with_figures(A800, {"overlap": 1.0}, "test")).parts["data-parallel"] == 0


def test_slow_decoding_shows() -> None:
    slow = with_figures(A800, {"decode": 0.1}, "test")
    fast, found = predicted(), predicted(gpu=slow)
    computing = sum(fast.parts[name] for name in ("products", "attention", "vision", "element-wise"))
    assert found.parts["data"] == pytest.approx(fast.parts["data"] + 9 / 0.1 - computing)


def test_memory_is_that_of_the_pre_flight() -> None:
    layout = Layout(pipeline=2, recompute="full")
    assert predicted(layout).memory == memory_estimate(laid_out(stage(), layout), 128)
    assert predict(stage(), layout, 128, A800, replace(PACKS, most_patches=9000)).memory == memory_estimate(
        laid_out(stage(), layout), 128, 9000
    )


def test_context_parallelism_shares_activations_and_state() -> None:
    one, four = predicted().memory.parts, predicted(Layout(context=4, recompute="full")).memory.parts
    for name in ("weights (BF16)", "gradients (FP32)", "optimizer state, 1/128 of it"):
        assert four[name] == one[name]
    name = "activations of language"
    assert four[name] == pytest.approx(one[name] / 4)
    # The fullest pack may be of images so large that a rank has a piece of each; it uses the tokens of its own.
    name = "activations of vision and adapter"
    assert four[name] == one[name] - (8192 - 2048) * 4096 * 2
    small = stage(128, data={"max_pixels": 200_704})  # 1,024 patches
    memory = predict(small, Layout(context=4, recompute="full"), 128, A800, PACKS).memory.parts
    assert memory[name] == pytest.approx(one[name] * (32_768 / 4 + 4 * 1024) / 32_768, rel=0.02)


def test_utilisation() -> None:
    found, without = predicted(), predicted(Layout())
    assert found.hfu > found.mfu > 0.1
    assert found.mfu == pytest.approx(found.model_flops / (found.seconds * 128 * 312e12))
    assert without.hardware_flops < found.hardware_flops
    assert without.model_flops == found.model_flops


def test_lines_add_up() -> None:
    lines = predicted(Layout(tensor=2, pipeline=2, context=2, recompute="full")).lines()
    seconds = [float(line.split()[-2]) for line in lines]
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.002)
