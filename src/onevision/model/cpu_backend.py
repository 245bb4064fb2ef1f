"""What Megatron-core 0.16.1 asks of CUDA by name, answered on the CPU.

Megatron-core has no CPU mode: it names the device in literals, asks for the current CUDA device and its random
state, and compares tensor type names. Everything here is a stand-in for one of those places; nothing changes maths.
It is tied to the exact version that was read.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.managers import SyncManager
from typing import Any

import megatron.core
import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode

from onevision.errors import InputError
from onevision.model.gpu_backend import install_adam
from onevision.processes import die_with

MEGATRON_VERSION = "0.16.1"


def _names_cuda(device: Any) -> bool:
    return torch.device(device).type == "cuda" if isinstance(device, (str, torch.device)) else False


class CudaLiteralsOnCpu(TorchFunctionMode):
    """Read `device="cuda"` as the CPU, and answer `.type()` with the CUDA name that Megatron compares with."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs:
            kwargs.pop("pin_memory", None)
            if _names_cuda(kwargs.get("device")):
                kwargs["device"] = "cpu"
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **kwargs)


class CpuRNGStatesTracker(megatron_random.CudaRNGStatesTracker):
    """Named random states of the CPU generator, forked as Megatron forks those of CUDA."""

    def add(self, name: str, seed: int) -> None:
        """Start the named state from a seed."""
        self._is_initialized = True
        if seed in self.seeds_ or name in self.states_:
            raise ValueError(f"random state {name} with seed {seed} exists already")
        self.seeds_.add(seed)
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def fork(self, name: str = megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
        """Draw from the named state inside the block."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(before)


def _results_queue() -> Any:
    # Megatron starts this manager with "spawn", which imports the main module and torch again (8 s); fork takes 0.1 s.
    if filesystem_async._results_queue is None:
        # Its socket has a name and no file (Linux), so that a kill leaves no folder in /tmp.
        name = f"\0onevision-{os.getpid()}-{secrets.token_hex(8)}"
        manager = SyncManager(address=name, ctx=multiprocessing.get_context("fork"))
        manager.start(die_with, (os.getpid(),))
        filesystem_async._results_queue = manager.Queue()
    return filesystem_async._results_queue


def install() -> None:
    """Put the stand-ins in place. Safe to call again.

    Raises:
        InputError: another Megatron-core version is installed.
    """
    if megatron.core.__version__ != MEGATRON_VERSION:
        raise InputError(
            f"megatron-core {megatron.core.__version__} is installed; the CPU path is made for {MEGATRON_VERSION}: "
            f"pip install megatron-core=={MEGATRON_VERSION}"
        )
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.synchronize = lambda *_, **__: None
    torch.cuda.manual_seed = lambda seed: None
    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda new_state, *_, **__: torch.set_rng_state(new_state)
    megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda new_state, *_, **__: torch.set_rng_state(new_state)
    megatron_random.CudaRNGStatesTracker = CpuRNGStatesTracker
    filesystem_async._get_write_results_queue = _results_queue
    install_adam()
