"""What a machine without a GPU, and GPUs of other kinds, are refused, in one line with the remedy."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from megatron.core.extensions import transformer_engine as te
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import build_module

from onevision.errors import InputError
from onevision.model import flash_attn_4
from onevision.model.attention import SegmentAttention
from onevision.model.backend import (
    backend_facts,
    fp8_problem,
    machine_problems,
    resolve_attention,
    resolve_backend,
    te_attention_problem,
)
from onevision.model.configs import adapter_config, language_config, vision_config
from onevision.model.device import select_device
from onevision.model.presets import PRESETS
from onevision.model.specs import core_attention
from onevision.recipe import ModelRecipe, OptimizerRecipe, ParallelRecipe, PerformanceRecipe, TrainRecipe

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch says of an A800."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A800-SXM4-80GB")


def test_a_cpu_has_one_backend() -> None:
    assert [resolve_attention(name, "torch", CPU) for name in ("auto", "torch")] == ["torch", "torch"]
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
    attention = resolve_attention("auto", "transformer_engine", GPU)
    assert attention == "torch"
    assert backend_facts("transformer_engine", attention, GPU)[1:] == [
        "attention: PyTorch's flash attention in BF16, its scaled dot product in FP32",
        f"absent: {problem}; with it comes its attention",
    ]


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


def test_what_performance_asks_for(chip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(device: torch.device, **performance: bool) -> list[str]:
        settings = PerformanceRecipe(**performance)
        return machine_problems(ModelRecipe(), TrainRecipe(), OptimizerRecipe(), device, settings)

    assert problems(GPU, cuda_graphs=True) == []
    assert problems(GPU, tp_comm_overlap=True) == [
        "performance.tp_comm_overlap=true needs Transformer Engine (Transformer Engine is not installed): use "
        "performance.tp_comm_overlap=false"
    ]
    monkeypatch.setattr(te, "HAVE_TE", True)
    assert problems(GPU, tp_comm_overlap=True) == []
    (problem,) = problems(GPU, cuda_graphs=True)
    assert problem.startswith("performance.cuda_graphs=true: model.backend=auto is Transformer Engine here")
    (problem,) = problems(CPU, cuda_graphs=True)
    assert problem == "performance.cuda_graphs=true needs a GPU, and there is none here: leave it false"


def test_language_alone_has_user_buffers() -> None:
    """Rows of vision vary, and no buffer fits them all."""
    tiny, parallel = PRESETS["tiny"], ParallelRecipe(tensor=2, sequence=True)
    language = language_config(tiny, ModelRecipe(), torch.bfloat16, parallel=parallel, overlap=True)
    vision = vision_config(tiny, language)
    assert language.tp_comm_overlap and not vision.tp_comm_overlap
    assert not adapter_config(tiny, vision).tp_comm_overlap


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What PyTorch says of an H100, and the packages of such a machine, which a test may change."""
    found = dict.fromkeys((*flash_attn_4._NEEDS, flash_attn_4._COMPILERS[1]), "1.0")
    found["flash-attn-4"] = flash_attn_4.VERSION
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flash_attn_4, "version", found.get)
    library = SimpleNamespace(get_cudnn_version=torch.backends.cudnn.version)
    monkeypatch.setitem(sys.modules, "transformer_engine_torch", library)
    return found


def test_attention_for_hopper_is_taken_by_name_only(hopper: dict[str, str]) -> None:
    assert resolve_attention("flash_attn_4", "torch", GPU) == "flash_attn_4"
    assert resolve_attention("flash_attn_4", "transformer_engine", GPU) == "flash_attn_4"
    assert resolve_attention("auto", "torch", GPU) == resolve_attention("torch", "transformer_engine", GPU) == "torch"
    assert resolve_attention("auto", "transformer_engine", GPU) == "transformer_engine"
    assert backend_facts("torch", "torch", GPU)[-2:] == [
        "attention: PyTorch's flash attention in BF16, its scaled dot product in FP32",
        "not used: flash-attn-4, made for Hopper, runs with model.attention=flash_attn_4 only",
    ]
    assert backend_facts("torch", "flash_attn_4", GPU)[-1] == (
        f"attention: flash-attn-4 {flash_attn_4.VERSION}, which compiles its kernels in the first step"
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"flash-attn-4": None}, "flash-attn-4 is not installed (envs/flash-attn-4.lock)"),
        ({"flash-attn-4": "4.0.0b3"}, f"flash-attn-4 4.0.0b3 is installed, and {flash_attn_4.VERSION} is supported"),
        ({"triton": None, "einops": None}, "flash-attn-4 lacks einops, triton (envs/flash-attn-4.lock)"),
        (
            {"nvidia-cutlass-dsl-libs-cu12": None},
            "flash-attn-4 lacks nvidia-cutlass-dsl-libs-cu13 or nvidia-cutlass-dsl-libs-cu12",
        ),
    ],
)
def test_attention_for_hopper_without_its_packages(hopper: dict[str, str], changed: dict[str, str], said: str) -> None:
    hopper.update(changed)
    (problem,) = machine_problems(ModelRecipe(attention="flash_attn_4"), TrainRecipe(), OptimizerRecipe(), GPU)
    assert problem.startswith(f"model.attention=flash_attn_4: {said}") and "\n" not in problem
    assert problem.endswith(": use model.attention=auto")
    assert backend_facts("torch", "torch", GPU)[-1].startswith(f"absent: {said}")


def test_attention_for_hopper_elsewhere(chip: None) -> None:
    for device, said in (
        (CPU, "flash-attn-4 needs a GPU"),
        (GPU, "flash-attn-4 is for Hopper (compute capability 9.0), and NVIDIA A800-SXM4-80GB has 8.0"),
    ):
        problems = machine_problems(ModelRecipe(attention="flash_attn_4"), TrainRecipe(), OptimizerRecipe(), device)
        assert problems == [f"model.attention=flash_attn_4: {said}: use model.attention=auto"]
    assert backend_facts("torch", "torch", GPU)[-1].startswith("attention: ")
    assert backend_facts("torch", "torch", CPU)[-1] == "attention: PyTorch's scaled dot product"


@pytest.mark.parametrize(("name", "expected"), [("flash_attn_4", flash_attn_4.flash_attn_4), ("torch", None)])
def test_the_attention_of_a_layer_is_the_one_that_was_chosen(name: str, expected: object) -> None:
    """By Megatron's own way from a spec to a module."""
    built = build_module(
        core_attention(name),
        config=language_config(PRESETS["tiny"], ModelRecipe(preset="tiny"), torch.bfloat16),
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
    )
    assert isinstance(built, SegmentAttention) and built.attend is expected


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device(1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"rank 2 of this machine has no GPU, as there are 2: use processes=2, or"):
        select_device(2)
