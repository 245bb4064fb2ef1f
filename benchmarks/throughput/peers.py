"""Language models of others on the same tokens: Hugging Face transformers' Qwen3, as it is and with Liger kernels.

A peer has the sizes of our language model and random weights, and does forward, backward and AdamW's update on the same
text packs, told apart by their positions. What differs from ours is said in its row: a peer of BF16 weights has BF16
moments and no FP32 masters (8 bytes a parameter where ours takes 18), which is faster, smaller and less exact.
"""

from __future__ import annotations

import gc
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from benchmarks.throughput.common import out_of_memory, spread
from benchmarks.throughput.packs import TEXT, synthetic_batch
from onevision.convert.hf_config import language_fields
from onevision.data.batch import PackedBatch
from onevision.errors import InputError
from onevision.machine import version
from onevision.model.presets import PRESETS, LanguageArchitecture
from onevision.training.flops import Work, device_peak, step_flops

VARLEN = "torch_varlen"  # the name under which PyTorch's own varlen attention is given to transformers
ATTENTION = ("sdpa", "flash_attention_2", VARLEN, "eager")


@dataclass(frozen=True)
class Peer:
    """How a peer is run. `precision`: bf16 (weights, gradients and moments), or autocast (FP32 weights and moments)."""

    model: str = "1.7b"
    attention: str = "sdpa"
    liger: bool = False
    precision: str = "bf16"
    checkpointing: bool = False  # every layer recomputed in the backward pass
    compile: bool = False
    sequence_length: int = 8192
    micro_batches: int = 4
    warmup: int = 3
    steps: int = 10
    seed: int = 1234

    @property
    def name(self) -> str:
        """What a table calls it."""
        parts = ["transformers", self.attention, *(["liger"] if self.liger else [])]
        parts += ["FP32 weights + autocast" if self.precision == "autocast" else self.precision]
        return ", ".join(parts + (["recompute"] if self.checkpointing else []) + (["compile"] if self.compile else []))


def missing(peer: Peer) -> str:
    """What the peer needs and this machine lacks; empty if it can run."""
    # By the names of packages: flash-attn-4, another one, has a module flash_attn too.
    needed = {"transformers": True, "liger-kernel": peer.liger, "flash-attn": peer.attention == "flash_attention_2"}
    absent = [name for name, wanted in needed.items() if wanted and version(name) is None]
    if not absent and peer.attention in (VARLEN, "flash_attention_2") and not torch.cuda.is_available():
        return "needs a GPU"
    return f"{', '.join(absent)} not installed" if absent else ""


def measure_peer(peer: Peer) -> dict[str, Any]:
    """One row with the figures that `measure_training` gives, as far as a peer has them.

    Raises:
        InputError: a package that it needs is not installed.
        torch.OutOfMemoryError: it does not fit the device.
    """
    if absent := missing(peer):
        raise InputError(f"{peer.name}: {absent}")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    architecture = PRESETS[peer.model]
    model = build_peer(peer, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    language = architecture.language
    batches = [
        synthetic_batch(
            TEXT,
            sequence_length=peer.sequence_length,
            packs=1,
            vocab_size=language.vocab_size,
            seed=peer.seed + number,
        )
        for number in range(peer.micro_batches)
    ]
    inputs = [peer_inputs(peer, batch, device) for batch in batches]
    run: Callable[..., Any] = torch.compile(model) if peer.compile else model

    def step() -> Tensor:
        total = torch.zeros((), device=device)
        for given in inputs:
            with torch.autocast(device.type, torch.bfloat16, enabled=peer.precision == "autocast"):
                loss = run(**given, use_cache=False).loss / len(inputs)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    losses = [float(step()) for _ in range(peer.warmup)]
    lengths = []
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(peer.steps):
        start_of_step = time.perf_counter()
        losses.append(float(step()))
        _synchronize(device)
        lengths.append(time.perf_counter() - start_of_step)
    seconds = time.perf_counter() - began
    segments = [length for batch in batches for length in batch.sample_lengths.tolist()]
    tokens = sum(segments) * peer.steps
    peak = device_peak(device, 0.0)
    flops = step_flops(architecture, Work(segments, []), ["vision", "adapter"]) * peer.steps
    memory = {}
    if device.type == "cuda":
        memory = {
            "allocated_gb": torch.cuda.max_memory_allocated(device) / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved(device) / 1e9,
        }
    return {
        "what": peer.name,
        "model": peer.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "peak_tflops": peak[0] / 1e12,
        "data": f"synthetic ({TEXT.source})",
        "layout": dict(vars(peer)),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")}
        | ({"liger-kernel": metadata.version("liger-kernel")} if peer.liger else {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "steps": peer.steps,
        "tokens": tokens,
        "tokens_per_second_per_gpu": tokens / seconds,
        "mfu": flops / (peak[0] * seconds),
        "step_seconds": spread(lengths),
        "memory": memory,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "finite": all(math.isfinite(loss) for loss in losses),
    }


def measure_first_peer(peers: Sequence[Peer]) -> dict[str, Any]:
    """The row of the first peer that fits the device's memory.

    Raises:
        InputError: none fits, or a package is not installed.
    """
    for peer in peers:
        try:
            return measure_peer(peer)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            line = f"{peer.name}: {str(error).splitlines()[0]}"
        print(f"does not fit: {line}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    raise InputError(f"out of memory: {line}")


def build_peer(peer: Peer, device: torch.device) -> torch.nn.Module:
    """transformers' Qwen3ForCausalLM of the preset's sizes on the device, with random weights."""
    if peer.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if peer.attention == VARLEN:
        register_varlen()
    config = Qwen3Config(**qwen3_sizes(PRESETS[peer.model].language), attn_implementation=peer.attention)
    config.use_cache = False
    dtype = torch.float32 if peer.precision == "autocast" else torch.bfloat16
    torch.manual_seed(peer.seed)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Qwen3ForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    model.train()
    if peer.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def qwen3_sizes(language: LanguageArchitecture) -> dict[str, Any]:
    """The sizes of a language model in the names of Qwen3's configuration."""
    return language_fields(language) | {
        "max_position_embeddings": language.max_position_embeddings,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
    }


def peer_inputs(peer: Peer, batch: PackedBatch, device: torch.device) -> dict[str, Any]:
    """The batch as the peer takes it: labels at the token itself, -100 where nothing is learned; segments by positions,
    and for varlen attention by cu_seqlens too.
    """
    labels = torch.full_like(batch.tokens, -100)
    rows = batch.loss_mask.nonzero().squeeze(1)
    labels[rows + 1] = batch.tokens[rows + 1]
    given: dict[str, Any] = {
        "input_ids": batch.tokens[None].to(device),
        "position_ids": batch.position_ids[None].to(device),
        "labels": labels[None].to(device),
    }
    if peer.attention in (VARLEN, "flash_attention_2"):
        bounds, longest = batch.cu_seqlens.to(device), int(batch.cu_seqlens.diff().max())
        given |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    return given


def register_varlen() -> None:
    """Let transformers call PyTorch's varlen flash attention: what a user without flash-attn can give it."""
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface, AttentionMaskInterface

    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **given: Any,
    ) -> tuple[Tensor, None]:
        # [1, heads, T, d] -> [T, heads, d]; under autocast norms give FP32, which flash attention does not take.
        q, k, v = (x.squeeze(0).transpose(0, 1).to(torch.bfloat16) for x in (query, key, value))
        more: dict[str, Any] = {"enable_gqa": True} if grouped else {}
        if not grouped:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        out = varlen_attn(
            q,
            k,
            v,
            given["cu_seq_lens_q"],
            given["cu_seq_lens_k"],
            given["max_length_q"],
            given["max_length_k"],
            scale=scaling,
            window_size=(-1, 0),
            **more,
        )
        return out[None], None

    AttentionInterface.register(VARLEN, attention)
    AttentionMaskInterface.register(VARLEN, lambda *args, **kwargs: None)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
