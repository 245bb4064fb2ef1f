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


def save_or_load(folder: Path, rank: int, ranks: int, name: str, expected: tuple[float, str | None] | None) -> None:
    """Save scales of 10 + rank, or load them and compare with those expected."""
    device = start(Ranks(rank, ranks, rank, ranks, f"file://{folder / name}"), 1)
    with runtime_context(device):
        if expected is None:
            model = torch.nn.Sequential(Scaled(10.0 + rank), torch.nn.Linear(2, 2))
            (folder / "checkpoint").mkdir(exist_ok=True)
            dist.barrier()
            dist_checkpointing.save(sharded_scales([model], rank, ranks), str(folder / "checkpoint"))
        else:
            model = torch.nn.Sequential(Scaled(), torch.nn.Linear(2, 2))
            assert scales([model]) == {}
            told = load_scales(folder / "checkpoint", [model], True, rank, ranks)
            assert model[0].kept == expected[0]
            assert (told or "").partition(": ")[2] == (expected[1] or "")
        dist.barrier()


def run(folder: Path, ranks: int, name: str, expected: list[tuple[float, str | None]] | None) -> None:
    with ExitStack() as stack:
        children = [
            stack.enter_context(forked(save_or_load, folder, rank, ranks, name, expected and expected[rank]))
            for rank in range(ranks)
        ]
        codes = [child.join() for child in children]
        assert codes == [0] * ranks, [child.error for child in children]


def test_every_rank_has_its_own_scales_again_and_another_number_of_ranks_is_told(tmp_path: Path) -> None:
    run(tmp_path, 2, "save", None)
    run(tmp_path, 2, "same", [(10.0, None), (11.0, None)])
    line = "FP8 scales of 2 ranks go on with {}: a rank takes those of rank modulo 2"
    run(tmp_path, 1, "one", [(10.0, line.format(1))])
    run(tmp_path, 3, "three", [(value, line.format(3)) for value in (10.0, 11.0, 10.0)])
