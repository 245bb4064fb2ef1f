"""Measures training steps of a recipe: the stepper of the training loop on its own packs or on synthetic ones."""

from __future__ import annotations

import gc
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.profiler import ProfilerActivity, profile

from benchmarks.throughput.common import out_of_memory, spread
from benchmarks.throughput.kernels import Kernel, read_kernels, summary
from benchmarks.throughput.packs import STAGES, TEXT, Statistics, synthetic_batch
from onevision.data.batch import PackedBatch
from onevision.data.loader import PackLoader, StepBatches
from onevision.data.sources import entries_of
from onevision.errors import InputError
from onevision.model.backend import machine_problems
from onevision.model.device import Ranks, runtime_context, select_device, set_threads, start
from onevision.model.layout import architecture_problems
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PRESETS
from onevision.recipe import Recipe, layout_problems
from onevision.training.environment import environment, training_facts
from onevision.training.flops import device_peak, recompute_flops, step_flops
from onevision.training.inputs import input_paths, open_inputs
from onevision.training.metrics import memory_mb
from onevision.training.parts import build_parts
from onevision.training.precision import allow_tf32, precision_dtype
from onevision.training.profiling import StepProfiler
from onevision.training.replica import join_replica
from onevision.training.step import StepTotals, reduce_totals
from onevision.training.stepper import Stepper
from onevision.training.timeline import Timeline

_DISTINCT = 4  # steps with batches of their own; then they come again


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    warmup: int = 3
    steps: int = 10
    profiled: int = 2  # further steps under the profiler, for the kernels; 0: none
    text_only: bool = False  # synthetic packs without images, for the comparison with language models
    trace: bool = False  # leave the profiler's trace of two further steps in `folder`
    memory: bool = False  # leave the history of the GPU's memory in `folder`
    folder: Path | None = None
    data: str = "auto"  # recipe, synthetic; auto: the recipe's own packs where they exist


def draw_weights(model: OneVisionModel, seed: int) -> None:
    """Random weights drawn on the device, in a second where the CPU takes a minute: for measuring, not for training."""
    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, model.architecture.init_std, generator=random)


def measure_training(recipe: Recipe, ranks: Ranks, settings: Settings) -> dict[str, Any]:
    """One row: figures of `settings.steps` steps of the recipe, over all ranks; the same on every rank.

    Raises:
        InputError: the recipe does not fit the ranks.
        torch.OutOfMemoryError: it does not fit the device.
    """
    problems = layout_problems(recipe, ranks.world_size)
    problems += architecture_problems(recipe, PRESETS[recipe.model.preset])
    problems += machine_problems(
        recipe.model, recipe.train, recipe.optimizer, select_device(ranks.local_rank), recipe.performance
    )
    if problems:
        raise InputError("; ".join(problems))
    recipe = _with_steps(recipe, settings)
    device = start(ranks, recipe.seed, parallel=recipe.parallel)
    threads = set_threads(recipe.train.threads, ranks.local_size)
    allow_tf32(recipe.train.tf32)
    with runtime_context(device):
        began = time.perf_counter()
        architecture = PRESETS[recipe.model.preset]
        parts = build_parts(recipe, device, initialize=False)
        for part in parts:
            draw_weights(part, recipe.seed)
        source, data, categories = _batches(recipe, settings, device)
        stepper = Stepper(recipe, parts, categories)
        facts = training_facts(recipe, device, stepper.optimizer)
        timeline = Timeline(device)
        timeline.attach(stepper)
        built = time.perf_counter() - began

        def step() -> tuple[StepTotals, float, float]:
            timeline.begin()
            start_of_step = time.perf_counter()
            batches = next(source)
            waited = time.perf_counter() - start_of_step
            losses = stepper.compute(batches)
            waited += batches.seconds
            totals = reduce_totals(losses, batches.facts, 0, categories)
            norm = stepper.gradient_norm()
            stepper.update(norm)
            timeline.mark("other")
            stepper.advance()
            return totals, waited, norm

        warm = [step()[0].loss for _ in range(settings.warmup)]
        timeline.clear()
        _synchronize(device)
        began = time.perf_counter()
        done = [step() for _ in range(settings.steps)]
        timeline.end()
        _synchronize(device)
        seconds = time.perf_counter() - began
        phases = timeline.steps()
        timeline.clear()
        memory = _memory(device)
        kernels = _profiled(step, device, settings) if settings.profiled else None
        files = _watched(step, ranks.rank, settings)

    totals = [entry for entry, _, _ in done]
    peak = device_peak(device, recipe.train.peak_tflops)
    world = ranks.world_size
    tokens = sum(sum(entry.real.segments) for entry in totals)
    slots = sum(sum(entry.slots.segments) for entry in totals)
    samples = sum(len(entry.real.segments) for entry in totals)
    model_flops = sum(step_flops(architecture, entry.real, recipe.model.freeze) for entry in totals)
    hardware_flops = sum(
        step_flops(architecture, entry.slots, recipe.model.freeze)
        + recompute_flops(architecture, entry.slots, recipe.model)
        for entry in totals
    )
    lengths = [sum(entry.values()) for entry in phases]
    losses = [*warm, *(entry.loss for entry in totals)]
    count = settings.steps
    return {
        "what": "training",
        "stage": recipe.stage,
        "model": architecture.name,
        "device": _name(device),
        "peak_tflops": peak[0] / 1e12,
        "text_only": settings.text_only,
        "data": data,
        "layout": _layout(recipe, world),
        "environment": environment(device, world, threads, peak),
        "facts": facts,
        "warmup": settings.warmup,
        "steps": count,
        "seconds": seconds,
        "build_seconds": built,
        "tokens": tokens,
        "slots": slots,
        "samples": samples,
        "patches": sum(sum(entry.real.images) for entry in totals),
        "tokens_per_second_per_gpu": tokens / seconds / world,
        "slots_per_second_per_gpu": slots / seconds / world,
        "samples_per_second": samples / seconds,
        "model_flops": model_flops,
        "hardware_flops": hardware_flops,
        "mfu": model_flops / (peak[0] * world * seconds),
        "hfu": hardware_flops / (peak[0] * world * seconds),
        "step_seconds": spread(lengths),
        "data_seconds": spread([waited for _, waited, _ in done]),
        "phases": {name: sum(entry.get(name, 0.0) for entry in phases) / count for name in _names(phases)},
        "memory": _most(memory),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "finite": all(math.isfinite(value) for value in [*losses, *(norm for _, _, norm in done)]),
        "kernels": kernels,
        "files": [str(path) for path in files],
    }


def measure_first_fitting(
    tries: Sequence[Recipe], ranks: Ranks, settings: Settings, said: Callable[[str], None]
) -> dict[str, Any]:
    """The row of the first recipe that fits the device's memory; `said` hears of those that do not.

    Raises:
        InputError: none fits; or there are several ranks and the first does not (the others would wait for it).
    """
    for recipe in tries:
        layout = _layout(recipe, ranks.world_size)
        try:
            return measure_training(recipe, ranks, settings) | {"tried": [_layout(one, 1) for one in tries]}
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            line = str(error).splitlines()[0]
        if ranks.world_size > 1:
            break
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        said(f"does not fit: {layout}: {line}")
    raise InputError(f"out of memory with {_layout(tries[-1], ranks.world_size)}: {line}")


def _with_steps(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with as many steps as are taken, and two more under each profiler."""
    steps = settings.warmup + settings.steps + settings.profiled + 2
    return replace(recipe, train=replace(recipe.train, steps=steps))


def _layout(recipe: Recipe, world_size: int) -> dict[str, Any]:
    train, parallel, model = recipe.train, recipe.parallel, recipe.model
    return {
        "gpus": world_size,
        "parallel": dict(vars(parallel)),
        "sequence_length": recipe.data.sequence_length,
        "micro_batch_size": train.micro_batch_size,
        "global_batch_size": train.global_batch_size,
        "precision": train.precision,
        "model": {name: value for name, value in vars(model).items() if name != "preset"},
        "performance": dict(vars(recipe.performance)),
    }


def _batches(recipe: Recipe, settings: Settings, device: torch.device) -> tuple[Iterator[StepBatches], str, int]:
    if settings.data == "recipe" or (settings.data == "auto" and not settings.text_only and has_packs(recipe)):
        return _own_batches(recipe, device)
    known: Statistics = TEXT if settings.text_only else STAGES[recipe.stage]
    ranks = parallel_state.get_data_parallel_world_size()
    count = recipe.train.global_batch_size // (recipe.train.micro_batch_size * ranks)
    first = recipe.seed + 1000 * parallel_state.get_data_parallel_rank()

    def made(number: int) -> PackedBatch:
        return synthetic_batch(
            known,
            sequence_length=recipe.data.sequence_length,
            packs=recipe.train.micro_batch_size,
            vocab_size=PRESETS[recipe.model.preset].language.vocab_size,
            seed=first + number,
        )

    distinct = [made(number) for number in range(min(_DISTINCT, count * (settings.warmup + settings.steps)))]
    if torch.cuda.is_available():
        distinct = [_pinned(batch) for batch in distinct]
    endless = itertools.cycle(distinct)

    def steps() -> Iterator[StepBatches]:
        while True:
            batches = StepBatches(iter([next(endless).to(device) for _ in range(count)]), count)
            batches.hold()  # stages of a pipeline
            yield batches

    return steps(), f"synthetic ({known.source})", 1


def has_packs(recipe: Recipe) -> bool:
    """Whether all packs, corpora and the tokenizer that the recipe names are there."""
    paths = input_paths(recipe)
    return all(Path(path).exists() for name, path in paths.items() if name != "train.init_from")


def _own_batches(recipe: Recipe, device: torch.device) -> tuple[Iterator[StepBatches], str, int]:
    inputs = open_inputs(replace(recipe, train=replace(recipe.train, init_from="")))
    loader = PackLoader(
        inputs.sources,
        inputs.tokenizer,
        recipe.data,
        seed=recipe.seed,
        global_batch_size=recipe.train.global_batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        device=device,
        dtype=precision_dtype(recipe.train.precision),
    )
    folders = ", ".join(entry.packs for entry in entries_of(recipe.data))
    batches = join_replica(recipe.parallel).share(loader, 0, recipe.train.steps)
    return batches, f"packs of {folders}", len(inputs.sources.categories)


def _pinned(batch: PackedBatch) -> PackedBatch:
    tensors = {name: value.pin_memory() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **tensors)


def _profiled(step: Callable[[], Any], device: torch.device, settings: Settings) -> dict[str, Any]:
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(settings.profiled):
            step()
        _synchronize(device)
        seconds = time.perf_counter() - began
    kernels = _gpu_kernels(profiler) if gpu else _cpu_operations(profiler)
    return summary(kernels, seconds, settings.profiled)


def _watched(step: Callable[[], Any], rank: int, settings: Settings) -> list[Path]:
    """Traces that were asked for, of two steps of their own: they make steps slower."""
    if settings.folder is None or not (settings.trace or settings.memory):
        return []
    watch = StepProfiler(settings.folder, rank, 1, 2, trace=settings.trace, memory=settings.memory)
    files: list[Path] = []
    for number in (1, 2):
        watch.before(number)
        step()
        files += watch.after(number)
    return files


def _gpu_kernels(profiler: Any) -> list[Kernel]:
    with tempfile.TemporaryDirectory(prefix="onevision-trace-") as folder:
        trace = Path(folder) / "trace.json.gz"
        profiler.export_chrome_trace(str(trace))
        return read_kernels(trace)


def _cpu_operations(profiler: Any) -> list[Kernel]:
    """The operations with the time that each took itself, laid end to end."""
    kernels, start = [], 0.0
    for event in profiler.key_averages():
        for _ in range(event.count):
            duration = event.self_cpu_time_total / event.count
            kernels.append(Kernel(event.key, start, duration))
            start += duration
    return kernels


def _memory(device: torch.device) -> dict[str, float]:
    """Peak GB of this rank: allocated by tensors, and reserved by the allocator (on a CPU: resident)."""
    if device.type != "cuda":
        return {"resident_gb": memory_mb(device) / 1e3}
    return {
        "allocated_gb": torch.cuda.max_memory_allocated(device) / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved(device) / 1e9,
        "device_gb": torch.cuda.get_device_properties(device).total_memory / 1e9,
        "retries": float(torch.cuda.memory_stats(device).get("num_alloc_retries", 0)),
    }


def _most(memory: dict[str, float]) -> dict[str, float]:
    ranks: list[Any] = [memory]
    if dist.get_world_size() > 1:
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, memory)
    return {name: max(rank[name] for rank in ranks) for name in memory}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _names(phases: Sequence[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for entry in phases for name in entry))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
