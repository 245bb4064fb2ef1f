"""The memory formulas against what autograd really keeps, against published sizes and against a real checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table
from torch import Tensor

from benchmarks.forks import run_ranks
from onevision.model.configs import language_config
from onevision.model.context import image_share, local_rows, pieces
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.onevision import WHOLE, OneVisionModel, Part, freeze
from onevision.model.presets import PRESETS
from onevision.model.split import deal_images
from onevision.model.stages import StagePart, stage_layers, stage_parts
from onevision.recipe import ModelRecipe, ParallelRecipe, Recipe, recipe_from
from onevision.training.checkpoint_files import step_folder
from onevision.training.in_flight import most_in_flight
from onevision.training.loop import train
from onevision.training.memory import (
    MicroBatch,
    checkpoint_bytes,
    kept_activations,
    memory_estimate,
    parameter_counts,
    rank_share,
    stage_estimate,
    trained_parameters,
)

ARCHITECTURE = PRESETS["tiny"]
GRIDS = [[1, 8, 8], [1, 16, 8], [1, 8, 8]]
SEGMENTS = [150, 200, 162]
BOUNDS = torch.tensor([0, *SEGMENTS]).cumsum(0).to(torch.int32)
SLOTS = torch.arange(1, 65)
BATCH = MicroBatch(tokens=sum(SEGMENTS), patches=256, images=len(GRIDS))
ALONE, ONE = Ranks(), ParallelRecipe()
ALL_LAYERS = StagePart(ARCHITECTURE.language.num_layers, first=True, last=True)
FROZEN = [[], ["vision"], ["vision", "language"], ["language"], ["adapter"]]


def kept_bytes(
    model_recipe: ModelRecipe,
    ranks: Ranks = ALONE,
    parallel: ParallelRecipe = ONE,
    part: Part = WHOLE,
) -> int:
    """Bytes of the storages that an FP32 forward pass saves for its backward pass, without the parameters'."""
    device = start(ranks, 1, parallel=parallel)
    config = language_config(ARCHITECTURE, model_recipe, torch.float32, parallel=replace(parallel, pipeline=1))
    model = OneVisionModel(ARCHITECTURE, config, part=replace(part, split_vision=parallel.split_vision))
    freeze(model, model_recipe.freeze)
    model.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # holding them keeps an address from being used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, 1000, (BATCH.tokens,))
    patches = torch.randn(BATCH.patches, 588)
    if not part.first:
        hidden = torch.randn(BATCH.tokens, 1, ARCHITECTURE.language.hidden_size, requires_grad=True)
        model.set_input_tensor([hidden])
    with runtime_context(device), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(tokens, torch.arange(len(tokens)), BOUNDS, patches, torch.tensor(GRIDS), SLOTS, labels=tokens)
    return sum(storage.nbytes() for storage in storages.values())


def estimated(
    model_recipe: ModelRecipe,
    batch: MicroBatch = BATCH,
    parallel: ParallelRecipe = ONE,
    part: StagePart = ALL_LAYERS,
) -> float:
    """The same by the formulas, with the gradient of the head."""
    kept = kept_activations(ARCHITECTURE, model_recipe, 4, batch, parallel, part)
    language = ARCHITECTURE.language
    head = 4 * language.vocab_size * language.hidden_size * ("language" not in model_recipe.freeze) * part.last
    return kept.vision + kept.language + head / parallel.tensor


def of_the_cpu(
    model_recipe: ModelRecipe,
    batch: MicroBatch = BATCH,
    parallel: ParallelRecipe = ONE,
    part: StagePart = ALL_LAYERS,
) -> float:
    """What PyTorch's own modules keep and the kernels of a GPU do not, in FP32: the normed values beside the input of
    every RMSNorm whose weight is trained; a copy of q before its norm; in vision q and k turned beside the product that
    they come from; values sorted by the length of their segment beside those unsorted (v before attention, its output
    after it; in vision also q and k; keys and values that were gathered are sorted anyway);
    cosines and sines; SiLU's output, and its factor. With recomputation, the angles, which a GPU keeps too: they are
    not counted."""
    language, vision, tensor = ARCHITECTURE.language, ARCHITECTURE.vision, parallel.tensor
    shared = tensor if parallel.sequence else 1
    q, k = language.num_attention_heads * language.head_dim, language.num_query_groups * language.head_dim
    trained = "language" not in model_recipe.freeze
    extra = 4 * batch.tokens * language.hidden_size * trained * part.last / shared  # the last norm
    if model_recipe.recompute == "none":
        layer = 2 * language.hidden_size * trained / shared + language.head_dim
        layer += (k * (not batch.keys) + (q + k) * trained + q * trained + q + 2 * language.ffn_hidden_size) / tensor
        extra += 4 * batch.tokens * layer * part.layers
        if part.first and "vision" not in model_recipe.freeze:
            row = 4 * vision.hidden_size / (1 if parallel.split_vision else tensor) + vision.head_dim
            extra += 4 * (batch.patches + batch.images) * row * vision.num_layers
    else:
        extra += 2 * (batch.tokens * language.head_dim + (batch.patches + batch.images) * vision.head_dim * part.first)
    return extra


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("frozen", FROZEN, ids=lambda parts: "+".join(parts) or "all trained")
def test_kept_activations_are_what_autograd_keeps(recompute: str, frozen: list[str]) -> None:
    model = ModelRecipe(preset="tiny", recompute=recompute, freeze=frozen)
    measured = kept_bytes(model)
    assert estimated(model) + of_the_cpu(model) == pytest.approx(measured, rel=0.02)
    assert 0.55 * measured < estimated(model) < measured


@pytest.mark.parametrize("frozen", [[], ["vision"]], ids=["all trained", "vision frozen"])
def test_what_a_recomputed_mlp_does_not_keep(frozen: list[str]) -> None:
    plain = ModelRecipe(preset="tiny", freeze=frozen)
    model = ModelRecipe(preset="tiny", recompute="selective", recompute_modules=["mlp"], freeze=frozen)
    saved = kept_bytes(plain) - kept_bytes(model)
    language = ARCHITECTURE.language
    silu = 4 * BATCH.tokens * 2 * language.ffn_hidden_size * language.num_layers  # of_the_cpu
    assert estimated(plain) - estimated(model) + silu == pytest.approx(saved, rel=0.02)


def test_blocks_of_recomputed_layers() -> None:
    three = ModelRecipe(preset="tiny", recompute="full", recompute_layers=3)
    assert estimated(three) + of_the_cpu(three) == pytest.approx(kept_bytes(three), rel=0.03)
    whole = kept_activations(ARCHITECTURE, ModelRecipe(preset="tiny"), 4, BATCH)
    block = kept_activations(ARCHITECTURE, three, 4, BATCH)
    assert block.language_block == pytest.approx(whole.language, rel=0.05)  # all layers, without what follows them
    assert whole.language_block == whole.vision_block == 0


LAYOUTS = {
    "tensor": ParallelRecipe(tensor=2),
    "sequence": ParallelRecipe(tensor=2, sequence=True),
    "context": ParallelRecipe(context=2),
    "split vision": ParallelRecipe(tensor=2, split_vision=True),
}
RECOMPUTE = ("none", "full")


def write_kept_bytes(folder: Path, parallel: ParallelRecipe, ranks: Ranks) -> None:
    """Of a rank of a layout, with and without recomputation: a JSON file."""
    torch.set_num_threads(1)
    kept = [kept_bytes(ModelRecipe(preset="tiny", recompute=recompute), ranks, parallel) for recompute in RECOMPUTE]
    (folder / str(ranks.rank)).write_text(json.dumps(kept))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_that_share_a_model_keep_what_is_said(layout: str, tmp_path: Path) -> None:
    parallel = LAYOUTS[layout]
    run_ranks(2, write_kept_bytes, tmp_path, parallel)
    for rank in range(2):
        batch, masks = BATCH, 0
        if parallel.context > 1:
            own = pieces(BOUNDS.long(), rank, 2)
            rows = local_rows(BATCH.tokens, rank, 2)
            share = image_share(torch.tensor(GRIDS), SLOTS, rows)
            batch = MicroBatch(len(rows), len(share.patch_rows), len(share.grid_thw), int(own.key_lengths.sum()))
            # Pieces that begin inside a sample have a mask on a CPU.
            cut = own.key_lengths > own.lengths
            masks = 4 * int((own.lengths * own.key_lengths)[cut].sum()) * ARCHITECTURE.language.num_layers
        elif parallel.split_vision:
            images = deal_images(torch.tensor(GRIDS).prod(1), 2)[rank]
            batch = replace(BATCH, patches=128, images=len(images))  # the large one, or the two small ones
        kept = json.loads((tmp_path / str(rank)).read_text())
        for recompute, measured in zip(RECOMPUTE, kept, strict=True):
            model = ModelRecipe(preset="tiny", recompute=recompute)
            expected = estimated(model, batch, parallel) + of_the_cpu(model, batch, parallel)
            expected += masks * (recompute == "none")
            assert expected == pytest.approx(measured, rel=0.02), (rank, recompute)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("layers", [(2, True, False), (1, False, False), (2, False, True)])
def test_a_part_of_a_pipeline_keeps_what_is_said(recompute: str, layers: tuple[int, bool, bool]) -> None:
    count, first, last = layers
    model, part = ModelRecipe(preset="tiny", recompute=recompute), StagePart(count, first, last)
    measured = kept_bytes(model, part=Part(first=first, last=last, layers=count))
    assert estimated(model, part=part) + of_the_cpu(model, part=part) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_no_rank_has_more_than_the_most(ranks: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    recipe = recipe_from({"data": {"sequence_length": 1024, "max_pixels": 200_704}, "parallel": {"context": ranks}})
    lengths: list[int] = []
    grids: list[list[int]] = []
    slots: list[int] = []
    while (start := sum(lengths)) < 1024:  # each sample an image and some text
        rows, columns, text = (int(torch.randint(low, 17, (1,), generator=draw)) for low in (1, 1, 4))
        lengths.append(min(rows * columns + text, 1024 - start))
        if lengths[-1] == rows * columns + text:
            grids.append([1, 2 * rows, 2 * columns])
            slots += range(start + 2, start + 2 + rows * columns)
    bounds, grid_thw = torch.tensor([0, *lengths]).cumsum(0), torch.tensor(grids)
    most = rank_share(MicroBatch(1024, 4 * len(slots), len(grids)), recipe)
    for rank in range(ranks):
        own = image_share(grid_thw, torch.tensor(slots), local_rows(1024, rank, ranks))
        assert len(own.patch_rows) <= most.patches
        assert len(own.grid_thw) <= most.images
        assert int(pieces(bounds, rank, ranks).key_lengths.sum()) <= most.keys
    split = replace(recipe, parallel=ParallelRecipe(tensor=ranks, split_vision=True))
    most_split, sizes = rank_share(MicroBatch(1024, 4 * len(slots), len(grids)), split), grid_thw.prod(1)
    assert max(int(sizes[images].sum()) for images in deal_images(sizes, ranks)) <= most_split.patches
    one = torch.tensor([0, 1024])  # a single sample needs all of it
    assert int(pieces(one, 0, ranks).key_lengths.sum()) == most.keys


@pytest.mark.parametrize(("pipeline", "virtual"), [(2, 1), (4, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_what_is_in_flight_is_what_megatron_schedules(pipeline: int, virtual: int, groups: int) -> None:
    micro_batches = groups * pipeline
    for stage in range(pipeline):
        place = SimpleNamespace(
            pp_group=SimpleNamespace(size=lambda: pipeline, rank=lambda stage=stage: stage),
            virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        )
        _, _, warm_up, _ = get_pp_rank_microbatches(micro_batches, virtual, pipeline, p2p_communicator=place)
        order = [part for _, part in get_schedule_table(micro_batches, virtual, pipeline)]
        waiting, most = [0] * virtual, 0
        largest = [0] * virtual
        for number, part in enumerate(order):
            waiting[part] += 1
            most = max(most, sum(waiting))
            largest = [max(pair) for pair in zip(largest, waiting, strict=True)]
            if number >= warm_up:
                waiting[virtual - 1 - order[number - warm_up]] -= 1
        found = most_in_flight(stage, pipeline, virtual, micro_batches)
        assert max(map(sum, found)) == most == min(warm_up + 1, micro_batches * virtual)
        assert [max(column) for column in zip(*found, strict=True)] == largest


@pytest.mark.parametrize(("preset", "together"), [("4b", 4_741_610_528), ("8b", 8_527_214_624)])
def test_published_parameter_counts(preset: str, together: int) -> None:
    assert sum(parameter_counts(PRESETS[preset]).values()) == together


def test_parameters_of_the_parts() -> None:
    device = start(Ranks(), 1)
    with runtime_context(device):
        model = OneVisionModel(ARCHITECTURE, language_config(ARCHITECTURE, ModelRecipe(preset="tiny"), torch.float32))
    for part, count in parameter_counts(ARCHITECTURE).items():
        assert sum(parameter.numel() for parameter in getattr(model, part).parameters()) == count


@pytest.mark.parametrize(("precision", "frozen"), [("fp32", []), ("bf16", ["language"])])
def test_a_checkpoint_takes_what_is_said(
    make_recipe: Callable[..., Recipe], precision: str, frozen: list[str]
) -> None:
    recipe = make_recipe(steps=1, precision=precision, model={"preset": "tiny", "freeze": frozen})
    train(recipe)
    written = sum(path.stat().st_size for path in Path(step_folder(recipe.output, 1)).iterdir())
    assert checkpoint_bytes(recipe) == pytest.approx(written, rel=0.03)


def published(**changes: dict[str, object]) -> Recipe:
    return recipe_from({"model": {"preset": "8b"}, "train": {"global_batch_size": 64}, **changes})


def test_8b_by_hand() -> None:
    count = 8_527_214_624
    estimate = memory_estimate(published(), 64)
    assert estimate.moment == "loss"
    assert estimate.parts["weights (BF16)"] == 2 * count
    assert estimate.parts["gradients (FP32)"] == 4 * count
    assert estimate.parts["optimizer state, 1/64 of it"] == 12 * count / 64
    tokens = 8192
    layer = 2 * (2 * 4096 + 3 * 4096 + 3 * 1024 + 2 * 12288) + 4 * 32 + 2 * (2 * 4096 + 12288)
    assert estimate.parts["activations of language"] == tokens * (36 * layer + 2 * 2 * 4096)
    assert estimate.parts["logits, loss, the head's gradient"] == 2048 * 151936 * 4 + 4 * 151936 * 4096
    assert estimate.total == pytest.approx(sum(estimate.parts.values()))


def test_what_is_frozen_needs_neither_gradients_nor_state() -> None:
    recipe = published(model={"preset": "8b", "freeze": ["vision", "language"]})
    adapter = parameter_counts(PRESETS["8b"])["adapter"]
    assert trained_parameters(recipe) == adapter
    parts = memory_estimate(recipe, 64).parts
    assert parts["gradients (FP32)"] == 4 * adapter
    assert parts["activations of language"] > 0  # the gradient goes through to the adapter
    assert parts["activations of vision and adapter"] < 1e9


@pytest.mark.parametrize(
    "smaller",
    [
        {"model": {"preset": "8b", "recompute": "full"}},
        {"model": {"preset": "4b"}},
        {"data": {"sequence_length": 4096}},
        {"parallel": {"tensor": 2}},
        {"parallel": {"context": 2}},
        {"model": {"preset": "8b", "recompute": "full"}, "parallel": {"pipeline": 4}},
    ],
)
def test_what_the_knobs_are_for(smaller: dict[str, dict[str, object]]) -> None:
    assert memory_estimate(published(**smaller), 64).total < memory_estimate(published(), 64).total


def test_the_fullest_stage_counts() -> None:
    # Vision stands on the first stage, which keeps the activations of four micro-batches; the loss on the last.
    one = memory_estimate(published(), 64).parts["activations of vision and adapter"]
    four = memory_estimate(published(parallel={"pipeline": 4}), 64).parts
    assert four["activations of vision and adapter"] == 4 * one
    assert "logits, loss, the head's gradient" not in four


WAYS: list[dict[str, object]] = [
    {"pipeline": 4},
    {"pipeline": 4, "virtual_pipeline": 3},
    {"pipeline": 3, "stage_layers": [6, 20, 10]},
    {"tensor": 4, "sequence": True, "pipeline": 2, "virtual_pipeline": 2},
]


@pytest.mark.parametrize("parallel", WAYS, ids=str)
def test_stages_have_the_whole_model_together(parallel: dict[str, object]) -> None:
    recipe, architecture = published(parallel=parallel), PRESETS["8b"]
    stages = stage_parts(recipe, architecture)
    layers = stage_layers(recipe, architecture)
    assert sum(part.layers for parts in stages for part in parts) == sum(layers) == 36
    estimates = [stage_estimate(recipe, 64, None, stage, parts) for stage, parts in enumerate(stages)]
    weights = sum(estimate.parts["weights (BF16)"] for estimate in estimates) * recipe.parallel.tensor
    assert weights == pytest.approx(2 * 8_527_214_624)
    assert memory_estimate(recipe, 64).total == max(estimate.total for estimate in estimates)


def test_a_stage_keeps_the_sum_of_its_parts() -> None:
    recipe = published(parallel={"pipeline": 4, "virtual_pipeline": 3}, train={"global_batch_size": 16 * 16})
    architecture = PRESETS["8b"]
    batch = MicroBatch(8192, 4 * 8192, 4 * 8192 * 196 // recipe.data.min_pixels)
    for stage, parts in enumerate(stage_parts(recipe, architecture)):
        kept = [kept_activations(architecture, recipe.model, 2, batch, recipe.parallel, part) for part in parts]
        sums = [
            sum(n * (one.language + one.vision) for n, one in zip(times, kept, strict=True))
            for times in most_in_flight(stage, 4, 3, 16)
        ]
        found = stage_estimate(recipe, 64, None, stage, parts)
        if found.moment != "backward of a vision layer":
            activations = sum(size for name, size in found.parts.items() if name.startswith("activations of"))
            assert activations == pytest.approx(max(sums))


def test_without_sequence_parallelism_what_is_elementwise_is_kept_by_every_rank() -> None:
    one, two, shared = (
        memory_estimate(published(parallel=parallel), 64).parts
        for parallel in ({}, {"tensor": 4}, {"tensor": 4, "sequence": True})
    )
    name = "activations of language"
    states = 8192 * 2 * 4096  # bytes of the hidden states of a pack
    # 4 a layer and the last norm's input; the gradient that the loss has ready is whole in both.
    assert two[name] - shared[name] == pytest.approx((36 * 4 + 1) * states * 3 / 4 - states * 3 / 4)
    assert one[name] / 4 < shared[name] < two[name] < one[name]
    name = "activations of vision and adapter"
    assert two[name] == shared[name]
    assert one[name] / 4 < two[name] < one[name]


def test_a_split_vision_tower_is_whole_on_every_rank() -> None:
    divided, split = (
        memory_estimate(published(parallel={"tensor": 4, "split_vision": way}), 64, 30_000).parts
        for way in (False, True)
    )
    counts = parameter_counts(PRESETS["8b"])
    vision = counts["vision"] + counts["adapter"]
    assert split["weights (BF16)"] - divided["weights (BF16)"] == pytest.approx(2 * vision * 3 / 4)
    state = "optimizer state, 1/16 of it"
    assert split[state] - divided[state] == pytest.approx(12 * vision * 3 / 4 / 16)
    largest = 13_062  # patches of an image of 2,560,000 pixels
    share = rank_share(MicroBatch(8192, 30_000, 1875), published(parallel={"tensor": 4, "split_vision": True}))
    assert (share.patches, share.images) == (math.ceil(7_500 + largest * 3 / 4), 1082)  # the smallest have 16 patches


def test_patches_are_on_the_first_stage_and_tokens_on_all() -> None:
    recipe = published(parallel={"pipeline": 2, "context": 2})  # 16 copies, 4 micro-batches
    stages = stage_parts(recipe, PRESETS["8b"])
    first, last = (
        stage_estimate(recipe, 64, 20_000, stage, parts).parts["data, in use and ahead"]
        for stage, parts in enumerate(stages)
    )
    assert last == 4 * 48 * 8192
    assert first == (4 + 16) * (48 * 8192 + 4 * 588 * 20_000)


def test_a_step_of_many_batches_needs_no_more_than_one_of_few() -> None:
    few, many = (memory_estimate(published(train={"global_batch_size": 64 * n}), 64).parts for n in (1, 100))
    assert few == many
    assert few["data, in use and ahead"] == 17 * (48 * 8192 + 4 * 588 * 32_768)
    device = memory_estimate(published(data={"resize": "device", "prefetch_packs": 2}), 64)
    assert device.parts["data, in use and ahead"] == 3 * (48 * 8192 + 2 * 588 * 32_768)
    held = memory_estimate(published(train={"global_batch_size": 64 * 5, "rerun": "validate"}), 64).parts
    assert held["data, in use and ahead"] == (5 + 16) / 17 * few["data, in use and ahead"]
    alone = memory_estimate(published(data={"workers": 0}), 64).parts
    assert alone["data, in use and ahead"] == 48 * 8192 + 4 * 588 * 32_768


def test_fewer_patches_need_less() -> None:
    assert memory_estimate(published(), 64, pack_patches=8000).total < memory_estimate(published(), 64).total
    assert memory_estimate(published(), 64, pack_patches=4 * 8192) == memory_estimate(published(), 64)


def test_the_table_adds_up() -> None:
    lines = memory_estimate(published(), 64).lines()
    values = [float(line.split()[-2]) for line in lines[1:]]
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.05)
    assert len({len(line) for line in lines[1:]}) == 1
