"""What a machine without a GPU, and GPUs of other kinds, are refused, in one line with the remedy."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from megatron.core.extensions import transformer_engine as te

from onevision.errors import InputError
from onevision.model.backend import (
    backend_facts,
    fp8_problem,
    machine_problems,
    resolve_backend,
    te_attention_problem,
)
from onevision.recipe import ModelRecipe, OptimizerRecipe, TrainRecipe

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch says of an A800."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A800-SXM4-80GB")


def test_a_cpu_has_one_backend() -> None:
    assert resolve_backend("auto", CPU) == resolve_backend("torch", CPU) == "torch"
    with pytest.raises(InputError, match="model.backend=transformer_engine: Transformer Engine needs a GPU: use"):
        resolve_backend("transformer_engine", CPU)


def test_an_a800_has_no_fp8(chip: None) -> None:
    assert fp8_problem("transformer_engine", GPU) == (
        "train.precision=fp8: NVIDIA A800-SXM4-80GB has compute capability 8.0 and no FP8 units, which begin with 8.9: "
        "use train.precision=bf16"
    )


def test_an_a800_without_flash_attention_has_pytorchs_with_transformer_engine(
    chip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(te, "HAVE_TE", True)
    assert resolve_backend("auto", GPU) == resolve_backend("transformer_engine", GPU) == "transformer_engine"
    problem = te_attention_problem(GPU)
    assert problem is not None and "needs the package flash-attn on GPUs before Hopper" in problem
    facts = backend_facts("transformer_engine", GPU)
    assert facts[1:] == ["attention: PyTorch's", f"absent: {problem}; with it comes its attention"]


@pytest.mark.parametrize("found", [91400, 91900])
def test_another_cudnn_than_pytorchs_is_not_used(found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    library = SimpleNamespace(get_cudnn_version=lambda: found)
    monkeypatch.setitem(sys.modules, "transformer_engine_torch", library)
    problem = te_attention_problem(GPU)
    assert (problem is None) == (found == 91900)
    assert problem is None or "cuDNN 91400 where PyTorch has 91900: set CUDNN_HOME" in problem


def test_fp8_without_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    problem = fp8_problem("torch", GPU)
    assert problem == (
        "train.precision=fp8 needs Transformer Engine (Transformer Engine is not installed): use train.precision=bf16"
    )


def test_everything_a_cpu_has_not() -> None:
    problems = machine_problems(
        ModelRecipe(), TrainRecipe(precision="fp8", tf32=True), OptimizerRecipe(state_dtype="bf16"), CPU
    )
    assert [problem.split(" ")[0] for problem in problems] == [
        "train.precision=fp8",
        "optimizer.state_dtype=bf16",
        "train.tf32=true",
    ]
    assert all("\n" not in problem for problem in problems)
