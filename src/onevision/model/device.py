"""The device, chosen once at the start: CUDA with NCCL and no changes, or the CPU with gloo and the stand-ins."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.rerun_state_machine import (
    RerunMode,
    destroy_rerun_state_machine,
    initialize_rerun_state_machine,
)
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from onevision.errors import InputError
from onevision.model import cpu_backend, gpu_backend
from onevision.recipe import ParallelRecipe


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: str = ""  # tcp://host:port or file:///path; empty: none, for a world of one


def select_device(local_rank: int = 0) -> torch.device:
    """CUDA device `local_rank` on a machine with GPUs, else the CPU.

    Raises:
        InputError: the machine has GPUs, and none for this rank.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise InputError(
            f"rank {local_rank} of this machine has no GPU, as there are {found}: use processes={found}, or "
            "CUDA_VISIBLE_DEVICES= to compute on the CPU"
        )
    return torch.device("cuda", local_rank)


def prepare_allocator() -> None:
    """Have PyTorch's allocator grow its segments in place: packs have another size each step, and what was cut to the
    size of one leaves gaps with the next (3 of an H100's 82 GB). Settings of PyTorch's own variables go first."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


def set_threads(threads: int, local_size: int) -> int:
    """Set the CPU threads of this rank; 0 means the usable cores over the ranks of this machine. Returns the number."""
    count = threads or max(1, len(os.sched_getaffinity(0)) // local_size)
    torch.set_num_threads(count)
    return count


def start(ranks: Ranks, seed: int, patience_minutes: int = 30, parallel: ParallelRecipe | None = None) -> torch.device:
    """Prepare the device, the process groups and the random generators of this rank, one of those that share a model
    as `parallel` says.

    A rank that waits longer than `patience_minutes` for the others, here or in a collective, gets torch's error.
    """
    device = select_device(ranks.local_rank)
    if device.type == "cuda":
        prepare_allocator()
        torch.cuda.set_device(device)
        gpu_backend.install()
    else:
        cpu_backend.install()
    if not dist.is_initialized():
        meeting: dict[str, Any] = {"init_method": ranks.rendezvous} if ranks.rendezvous else {"store": dist.HashStore()}
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timedelta(minutes=patience_minutes),
            **meeting,
        )
    if not parallel_state.is_initialized():
        parallel = parallel or ParallelRecipe()
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
            context_parallel_size=parallel.context,
            expert_tensor_parallel_size=1,  # there are no experts: a group of this rank alone
            distributed_timeout_minutes=patience_minutes,
        )
        initialize_rerun_state_machine(mode=RerunMode.DISABLED)
    torch.manual_seed(seed)
    with runtime_context(device):
        model_parallel_cuda_manual_seed(seed)
    return device


def stop() -> None:
    """Leave the process groups."""
    parallel_state.destroy_model_parallel()
    destroy_rerun_state_machine()
    if dist.is_initialized():
        dist.destroy_process_group()


def runtime_context(device: torch.device) -> AbstractContextManager[object]:
    """Context in which Megatron's schedules, optimizer and checkpoints run on `device`."""
    return nullcontext() if device.type == "cuda" else cpu_backend.CudaLiteralsOnCpu()
