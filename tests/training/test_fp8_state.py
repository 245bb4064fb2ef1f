"""Scales of delayed FP8 in checkpoints, on layers that keep them as Transformer Engine's do, which need a GPU."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from torch import Tensor

from onevision.model.device import Ranks, runtime_context, start
from onevision.recipe import ParallelRecipe
from onevision.training.fp8_state import load_scales, scales, sharded_scales
from tests.forks import forked


class Scaled(torch.nn.Linear):
    """A layer whose extra state is the bytes of what it keeps, and empty before its first step."""

    def __init__(self, kept: float | None = None) -> None:
        super().__init__(2, 2)
        self.kept = kept
        self.fp8_meta = {"recipe": SimpleNamespace(delayed=lambda: True)} if kept is not None else {}

    def get_extra_state(self) -> Tensor:
        """As uint8."""
        return torch.frombuffer(bytearray(pickle.dumps(self.kept)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """From uint8."""
        self.kept = pickle.loads(state.numpy().tobytes())

    def reset_fp8_meta_tensors(self) -> None:
        """To what they are in the first step."""
        self.kept = 1.0


def model_of(stage: int, kept: float | None) -> torch.nn.Module:
    """A pipeline stage's only layer, which is the first one there, and number `stage` of the model."""
    layer = torch.nn.Sequential(Scaled(kept), torch.nn.Linear(2, 2))
    layer.layer_number = stage + 1
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})


Expected = tuple[float, str | None]


def save_or_load(
    folder: Path, rank: int, layout: tuple[int, int], name: str, expected: Expected | None, kept: float | None
) -> None:
    """Save scales of 10 + rank, or load them where `kept` is, and compare with those expected."""
    ranks, stages = layout
    device = start(Ranks(rank, ranks, rank, ranks, f"file://{folder / name}"), 1, 5, ParallelRecipe(pipeline=stages))
    with runtime_context(device):
        stage = rank * stages // ranks
        if expected is None:
            model = model_of(stage, 10.0 + rank)
            (folder / "checkpoint").mkdir(exist_ok=True)
            dist.barrier()
            dist_checkpointing.save(sharded_scales([model], rank, ranks), str(folder / "checkpoint"))
        else:
            model = model_of(stage, kept)
            if kept is None:
                assert scales([model]) == {}
            told = load_scales(folder / "checkpoint", [model], True, rank, ranks)
            found = [module.kept for module in model.modules() if isinstance(module, Scaled)]
            assert found == [expected[0]]
            assert (told or "").partition(": ")[2] == (expected[1] or "")
        dist.barrier()


def run(
    folder: Path, layout: tuple[int, int], name: str, expected: list[Expected] | None, kept: float | None = None
) -> None:
    with ExitStack() as stack:
        children = [
            stack.enter_context(forked(save_or_load, folder, rank, layout, name, expected and expected[rank], kept))
            for rank in range(layout[0])
        ]
        codes = [child.join() for child in children]
        assert codes == [0] * layout[0], [child.error for child in children]


LINE = "FP8 scales of 2 ranks go on with {}: a rank takes those of one with its layers"


def test_every_rank_has_its_own_scales_again_and_another_number_of_ranks_is_told(tmp_path: Path) -> None:
    run(tmp_path, (2, 1), "save", None)
    run(tmp_path, (2, 1), "same", [(10.0, None), (11.0, None)])
    run(tmp_path, (3, 1), "three", [(value, LINE.format(3)) for value in (10.0, 11.0, 10.0)])


def test_a_pipeline_stage_takes_scales_of_its_own_layers_or_none(tmp_path: Path) -> None:
    run(tmp_path, (2, 2), "save", None)
    run(tmp_path, (4, 2), "four", [(value, LINE.format(4)) for value in (10.0, 10.0, 11.0, 11.0)])
    others = "its FP8 scales are of other layers for 1 of 2 ranks: there they start anew"
    run(tmp_path, (2, 1), "whole", [(10.0, others), (1.0, others)], kept=5.0)  # as in a rewind
