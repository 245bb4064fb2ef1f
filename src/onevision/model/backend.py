"""Which modules a model is made of on this machine, which attention it has, and whether it can compute in FP8: chosen
once, at start."""

from __future__ import annotations

import torch
from megatron.core.extensions import transformer_engine as te

from onevision.errors import InputError
from onevision.machine import version
from onevision.model import flash_attn_4
from onevision.recipe import ModelRecipe, OptimizerRecipe, PerformanceRecipe, TrainRecipe

TRANSFORMER_ENGINE, TORCH = "transformer_engine", "torch"
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0, Ampere (A100, A800) 8.0
_FUSED_THD_CAPABILITY = (9, 0)  # from which on cuDNN has attention over packed segments


def transformer_engine_problem(device: torch.device) -> str | None:
    """Why Transformer Engine is no backend here; None where it is one."""
    if device.type != "cuda":
        return "Transformer Engine needs a GPU"
    if not te.HAVE_TE:
        return "Transformer Engine is not installed"
    return None


def te_attention_problem(device: torch.device) -> str | None:
    """Why the attention of Transformer Engine, which is a backend here, is not used with its other modules; None where
    it is. PyTorch's takes its place."""
    if torch.cuda.get_device_capability(device) < _FUSED_THD_CAPABILITY and not version("flash-attn"):
        # Without it there is but an attention that holds the square of every pack. (flash-attn-4, which has a module of
        # the same name, is another package.)
        return "Transformer Engine's attention needs the package flash-attn on GPUs before Hopper: it is not installed"
    import transformer_engine_torch

    found, own = transformer_engine_torch.get_cudnn_version(), torch.backends.cudnn.version()
    if found != own:  # seen: it takes that of the CUDA toolkit, whose parts are then looked for in PyTorch's
        return f"Transformer Engine has found cuDNN {found} where PyTorch has {own}: set CUDNN_HOME to PyTorch's"
    return None


def resolve_backend(name: str, device: torch.device) -> str:
    """`transformer_engine` or `torch` for `model.backend` on `device`.

    Raises:
        InputError: Transformer Engine is asked for by name and is no backend here.
    """
    if name == TORCH:
        return TORCH
    problem = transformer_engine_problem(device)
    if name == TRANSFORMER_ENGINE and problem:
        raise InputError(f"model.backend={name}: {problem}: use model.backend=torch")
    return TORCH if problem else TRANSFORMER_ENGINE


def resolve_attention(name: str, backend: str, device: torch.device) -> str:
    """`transformer_engine`, `torch` or `flash_attn_4` for `model.attention` with the resolved `backend` on `device`.

    auto is the backend's own, or PyTorch's where that of Transformer Engine cannot run. It does not take flash_attn_4
    before that was seen to be right and faster on a GPU.

    Raises:
        InputError: flash_attn_4 is asked for and cannot run here.
    """
    if name == "auto" and backend == TRANSFORMER_ENGINE and te_attention_problem(device) is None:
        return TRANSFORMER_ENGINE
    if name != flash_attn_4.NAME:
        return TORCH
    problem = flash_attn_4.problem(device)
    if problem:
        raise InputError(f"model.attention={name}: {problem}: use model.attention=auto")
    return name


def fp8_problem(backend: str, device: torch.device) -> str | None:
    """Why FP8 is impossible with `backend` on `device`, with the remedy; None where it is possible."""
    remedy = "use train.precision=bf16"
    if device.type != "cuda":
        return f"train.precision=fp8 needs a GPU with FP8 units, and there is none here: {remedy}"
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        return (
            f"train.precision=fp8: {torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]} and no FP8 units, which begin with "
            f"{FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]}: {remedy}"
        )
    if backend != TRANSFORMER_ENGINE:
        reason = transformer_engine_problem(device) or "model.backend=torch"
        return f"train.precision=fp8 needs Transformer Engine ({reason}): {remedy}"
    return None


def machine_problems(
    model: ModelRecipe,
    train: TrainRecipe,
    optimizer: OptimizerRecipe,
    device: torch.device,
    performance: PerformanceRecipe | None = None,
) -> list[str]:
    """What a recipe asks for and `device` with its software has not, each with the remedy."""
    try:
        backend = resolve_backend(model.backend, device)
        resolve_attention(model.attention, backend, device)
    except InputError as error:
        return [str(error)]
    problems = []
    if train.precision == "fp8" and (problem := fp8_problem(backend, device)):
        problems.append(problem)
    if optimizer.state_dtype != "fp32" and backend != TRANSFORMER_ENGINE:
        problems.append(
            f"optimizer.state_dtype={optimizer.state_dtype} needs Transformer Engine's Adam "
            f"({transformer_engine_problem(device)}): use optimizer.state_dtype=fp32"
        )
    if model.recompute == "selective" and "activation" in model.recompute_modules and device.type != "cuda":
        problems.append("model.recompute_modules: activation needs a GPU, and there is none here: leave it out")
    if performance is not None and performance.cuda_graphs:
        if device.type != "cuda":
            problems.append("performance.cuda_graphs=true needs a GPU, and there is none here: leave it false")
        elif backend == TRANSFORMER_ENGINE:
            problems.append(
                "performance.cuda_graphs=true: model.backend=auto is Transformer Engine here, whose layers are not cut "
                "at attention: use model.backend=torch, or performance.cuda_graphs=false"
            )
    if performance is not None and performance.tp_comm_overlap and backend != TRANSFORMER_ENGINE:
        problems.append(
            f"performance.tp_comm_overlap=true needs Transformer Engine ({transformer_engine_problem(device)}): use "
            "performance.tp_comm_overlap=false"
        )
    if train.tf32 and device.type != "cuda":
        problems.append("train.tf32=true needs a GPU, and there is none here: leave it false")
    return problems


def backend_facts(backend: str, attention: str, device: torch.device) -> list[str]:
    """Lines that say what the model is made of here, and what is absent that would be faster.

    attention: as `resolve_attention` says.
    """
    facts = []
    if backend == TRANSFORMER_ENGINE:
        facts.append(f"backend: Transformer Engine {version('transformer-engine')}: linears, norms")
    else:
        facts.append("backend: PyTorch")
        problem = transformer_engine_problem(device)
        if device.type == "cuda" and problem:
            facts.append(f"absent: {problem}; with it come fused linears and norms, and FP8 where the GPU has it")
    return facts + _attention_facts(backend, attention, device)


def _attention_facts(backend: str, attention: str, device: torch.device) -> list[str]:
    if attention == flash_attn_4.NAME:
        return [f"attention: flash-attn-4 {flash_attn_4.VERSION}, which compiles its kernels in the first step"]
    if attention == TRANSFORMER_ENGINE:
        flash = version("flash-attn")
        facts = [f"attention: {f'flash-attn {flash}' if flash else 'cuDNN'}, through Transformer Engine"]
    elif device.type == "cuda":
        facts = ["attention: PyTorch's flash attention in BF16, its scaled dot product in FP32"]
        problem = te_attention_problem(device) if backend == TRANSFORMER_ENGINE else None
        if problem:
            facts.append(f"absent: {problem}; with it comes its attention")
    else:
        facts = ["attention: PyTorch's scaled dot product"]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        problem = flash_attn_4.problem(device)
        if problem:
            facts.append(f"absent: {problem}; its attention is made for Hopper: model.attention=flash_attn_4")
        else:
            facts.append("not used: flash-attn-4, made for Hopper, runs with model.attention=flash_attn_4 only")
    return facts
