"""The state as one rank holds it: what comes back has the same bits, what does not fit is refused, nothing is run.

That ranks agree on their copies and go on from them is shown by the fault matrix (tests/faults).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onevision.errors import InputError
from onevision.recipe import OptimizerRecipe, recipe_from
from onevision.training.adam import FusedAdam
from onevision.training.local_state import restore, take
from onevision.training.optimizer import build_scheduler


class Trained:
    """Two parts of a model with an optimizer each, one of them of a frozen part, after some steps."""

    def __init__(self, seed: int, steps: int, width: int = 4) -> None:
        torch.manual_seed(seed)
        self.parts = [torch.nn.Linear(3, width), torch.nn.Linear(width, 2)]
        self.inner = [FusedAdam(part.parameters(), lr=0.1) for part in self.parts]
        held = [SimpleNamespace(optimizer=inner, is_stub_optimizer=False) for inner in self.inner]
        self.optimizer: Any = SimpleNamespace(chained_optimizers=[*held, SimpleNamespace(is_stub_optimizer=True)])
        self.optimizer.param_groups = [group for inner in self.inner for group in inner.param_groups]
        for group in self.optimizer.param_groups:
            group |= {"wd_mult": 1.0, "lr_mult": 1.0}
        self.scheduler = build_scheduler(self.optimizer, OptimizerRecipe(lr=0.1), steps=10)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        hidden = self.parts[0](torch.ones(5, 3))
        self.parts[1](hidden).square().sum().backward()
        for inner in self.inner:
            inner.step()
            inner.zero_grad()
        self.scheduler.step(1)

    @property
    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for part in self.parts for parameter in part.parameters()]


def saved(trained: Trained, path: Path) -> Path:
    torch.save(take(trained.parts, trained.optimizer, trained.scheduler, {"step": 3, "guard": {"losses": [0.5]}}), path)
    return path


def test_what_comes_back_goes_on_bit_for_bit(tmp_path: Path) -> None:
    first, other = Trained(1, steps=3), Trained(2, steps=5)
    path = saved(first, tmp_path / "state.pt")
    assert path.stat().st_size < 20_000  # copies of the shards alone, not of the buffers that they lie in
    beside = restore(path, other.parts, other.optimizer, other.scheduler)
    assert beside == {"step": 3, "guard": {"losses": [0.5]}}
    for _ in range(3):
        first.step()
        other.step()
        assert all(map(torch.equal, first.weights, other.weights))
    assert other.scheduler.num_steps == 6
    assert [group["step"] for group in other.optimizer.param_groups] == [6, 6]


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path, other = saved(Trained(1, steps=1), tmp_path / "state.pt"), Trained(1, steps=1, width=5)
    with pytest.raises(
        InputError, match=r"state.pt does not fit this model: weight is \[4, 3\] .* instead of \[5, 3\]"
    ):
        restore(path, other.parts, other.optimizer, other.scheduler)
    with pytest.raises(InputError, match="does not fit this model"):
        restore(path, other.parts[:1], other.optimizer, other.scheduler)


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trained, path = Trained(1, steps=1), tmp_path / "state.pt"
    torch.save({"model": Bomb(tmp_path / "run")}, path)
    with pytest.raises(InputError, match="does not fit this model"):
        restore(path, trained.parts, trained.optimizer, trained.scheduler)
    assert not (tmp_path / "run").exists()


def test_delayed_fp8_has_no_local_copies() -> None:
    values = {"checkpoint": {"local": "/dev/shm/x"}, "train": {"precision": "fp8", "fp8_recipe": "delayed"}}
    with pytest.raises(InputError, match="checkpoint.local=/dev/shm/x: the scales of delayed FP8 are not part"):
        recipe_from(values)
