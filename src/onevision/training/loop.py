"""The training loop, from recipe to finished run, to be read from top to bottom."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from onevision.corpus.reader import CorpusReader
from onevision.data.batch import PackedBatch
from onevision.data.loader import PackLoader
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import Diverged, InputError, Interrupted
from onevision.files import read_json, write_json
from onevision.model.device import Ranks, runtime_context, set_threads, start
from onevision.model.onevision import OneVisionModel, freeze, language_config
from onevision.model.presets import PRESETS
from onevision.model.specs import backend_modules
from onevision.packing.index import PackIndex
from onevision.progress import MARK, bar, duration
from onevision.recipe import Recipe, layout_problems
from onevision.training import checkpoint
from onevision.training.flops import Work, device_peak, recompute_flops, step_flops
from onevision.training.metrics import Metrics, memory_mb
from onevision.training.optimizer import build_optimizer, build_scheduler, data_parallel, precision_dtype
from onevision.training.run import lock_run, open_run, write_environment, write_lineage


class StopRequest:
    """Ctrl-C, SIGTERM or SIGUSR2 asks for a stop after the current step; the loop saves and leaves."""

    def __init__(self) -> None:
        self.signum = 0

    def install(self) -> None:
        """Take the signals."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


def build_model(recipe: Recipe, device: torch.device) -> OneVisionModel:
    """The preset's model on `device`, initialised from the recipe's seed, with the recipe's parts frozen."""
    architecture = PRESETS[recipe.model.preset]
    config = language_config(architecture, recipe.model, precision_dtype(recipe.train.precision))
    torch.manual_seed(recipe.seed)
    model = OneVisionModel(architecture, config, backend_modules(device))
    freeze(model, recipe.model.freeze)
    return model.to(device)


def initialise(recipe: Recipe) -> dict[str, Any]:
    """Write the stage-0 checkpoint of a model initialised from the seed; returns the summary."""
    device = start(Ranks(), recipe.seed)
    set_threads(recipe.train.threads, 1)
    run = open_run(recipe, {})
    with lock_run(run), runtime_context(device):
        if (run / "step.json").exists():
            return read_json(run / "step.json")["summary"]
        model = build_model(recipe, device)
        writer = checkpoint.Checkpointer(run, model.architecture, keep=1, asynchronous=False)
        writer.save(0, model)
        write_lineage(run, {}, {})
        summary = {"parameters": sum(parameter.numel() for parameter in model.parameters()), "steps": 0}
        write_json(run / "step.json", {"step": recipe.stage, "summary": summary})
    return summary


def train(recipe: Recipe, ranks: Ranks | None = None) -> dict[str, Any]:
    """Train one stage to its end, from its last complete checkpoint if there is one; returns the summary.

    Raises:
        InputError: recipe, corpus, packs, tokenizer or start weights do not fit together.
        Interrupted: a signal asked for a stop; the state was saved.
        StorageError: the disk is full; earlier checkpoints are untouched.
        Diverged: loss or gradient is not a number; nothing was saved after it.
    """
    stop = StopRequest()
    stop.install()
    ranks = ranks or Ranks()
    problems = layout_problems(recipe, ranks.world_size)
    if problems:
        raise InputError("; ".join(problems))
    settings = recipe.train

    # What is read: refused here if it does not fit, before anything is built.
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    corpus, packs = CorpusReader(recipe.data.corpus), PackIndex.open(recipe.data.packs)
    packs.check_against(corpus.index, recipe.data, tokenizer)
    start_from = checkpoint.find(settings.init_from) if settings.init_from else None
    inputs = {"packs": packs.fingerprint, "corpus": corpus.index.fingerprint, "tokenizer": tokenizer.fingerprint}
    if start_from is not None:
        inputs["init_from"] = start_from[1]["fingerprint"]
    architecture = PRESETS[recipe.model.preset]
    if start_from is not None:
        checkpoint.check_architecture(*start_from, architecture)
    if tokenizer.vocab_size > architecture.language.vocab_size:
        raise InputError(
            f"{recipe.data.tokenizer} has {tokenizer.vocab_size} tokens and model {architecture.name} has room for "
            f"{architecture.language.vocab_size}: use the tokenizer of the model, or another preset"
        )

    device = start(ranks, recipe.seed)
    threads = set_threads(settings.threads, ranks.local_size)
    run = open_run(recipe, inputs)
    first = ranks.rank == 0
    with lock_run(run) if first else nullcontext(), runtime_context(device):
        if (run / "step.json").exists():
            return read_json(run / "step.json")["summary"]

        found = checkpoint.newest(run)
        model = build_model(recipe, device)
        config = model.config
        if found is None and start_from is not None:
            checkpoint.load_model(*start_from, model)  # before the optimizer copies its FP32 masters
        ddp = data_parallel(model, config)
        optimizer = build_optimizer(ddp, config, recipe)
        scheduler = build_scheduler(optimizer, recipe.optimizer, settings.steps)
        writer = checkpoint.Checkpointer(
            run, architecture, keep=recipe.checkpoint.keep, asynchronous=recipe.checkpoint.asynchronous
        )
        done = 0
        if found is not None:
            done = checkpoint.load_training(*found, model, optimizer, scheduler)
            print(f"{recipe.name}: continuing after step {done} of {settings.steps} from {found[0]}", flush=True)

        peak = device_peak(device, settings.peak_tflops)
        metrics = None
        if first:
            write_environment(run, device, ranks.world_size, threads, peak)
            parents = {"packs": recipe.data.packs, "corpus": recipe.data.corpus, "init_from": settings.init_from}
            write_lineage(run, inputs, {name: folder for name, folder in parents.items() if folder})
            metrics = Metrics(run, done)

        loader = PackLoader(
            corpus,
            packs,
            tokenizer,
            recipe.data,
            seed=recipe.seed,
            global_batch_size=settings.global_batch_size,
            micro_batch_size=settings.micro_batch_size,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
        )
        forward_backward = get_forward_backward_func()
        categories = corpus.index.categories
        began = shown = time.monotonic()
        batches_of_steps = iter(loader.iterate(done, settings.steps))
        for step in range(done + 1, settings.steps + 1):
            step_start = time.perf_counter()
            batches = [batch.to(device) for batch in next(batches_of_steps)]
            data_seconds = time.perf_counter() - step_start

            ddp.zero_grad_buffer()
            optimizer.zero_grad()
            losses = forward_backward(
                forward_step_func=partial(forward_step, categories=len(categories)),
                data_iterator=iter(batches),
                model=ddp,
                num_microbatches=len(batches),
                seq_length=settings.micro_batch_size * recipe.data.sequence_length,
                micro_batch_size=1,
                forward_only=False,
            )
            totals = reduce_totals(losses, batches, stop)
            loss = float(totals.loss_sum / totals.tokens)
            refuse_divergence("loss", loss, step, corpus, batches)
            _, grad_norm, _ = optimizer.step()
            refuse_divergence("gradient norm", float(grad_norm), step, corpus, batches)
            learning_rate = optimizer.param_groups[0]["lr"]
            scheduler.step(1)

            seconds = time.perf_counter() - step_start
            real, slots = totals.real_work, totals.slot_work
            flops = step_flops(architecture, real, recipe.model.freeze)
            hardware = step_flops(architecture, slots, recipe.model.freeze)
            hardware += recompute_flops(architecture, slots, recipe.model)
            budget = peak[0] * ranks.world_size * seconds
            if metrics is not None and (step % settings.log_interval == 0 or step == settings.steps):
                tokens = sum(real.segments)
                metrics.write(
                    {
                        "step": step,
                        "loss": loss,
                        "lr": learning_rate,
                        "grad_norm": float(grad_norm),
                        "tokens": tokens,
                        "slots": sum(slots.segments),
                        "samples": len(real.segments),
                        "patches": sum(real.images),
                        "target_tokens": int(totals.tokens),
                        "loss_by_category": totals.by_category(categories),
                        "step_seconds": seconds,
                        "data_seconds": data_seconds,
                        "tokens_per_second": tokens / seconds,
                        "samples_per_second": len(real.segments) / seconds,
                        "flops": flops,
                        "hardware_flops": hardware,
                        "mfu": flops / budget,
                        "hfu": hardware / budget,
                        "skipped": totals.skipped,
                        "memory_mb": memory_mb(device),
                        "epoch": step * settings.global_batch_size / packs.packs,
                    }
                )
                if time.monotonic() - shown > 2 or step == settings.steps:
                    shown = time.monotonic()
                    left = (shown - began) / (step - done) * (settings.steps - step)
                    print(
                        f"{MARK}{recipe.name:<9} {bar(step / settings.steps)} step {step:,}/{settings.steps:,}  "
                        f"loss {loss:.4f}  lr {learning_rate:.2e}  {tokens / seconds:,.0f} tokens/s  "
                        f"MFU {flops / budget:.1%}  ETA {duration(left)}",
                        flush=True,
                    )

            writer.poll()
            if step == settings.steps or totals.stop or step % recipe.checkpoint.interval == 0:
                writer.save(step, model, optimizer, scheduler, wait=step == settings.steps or totals.stop > 0)
            if totals.stop and step < settings.steps:
                if metrics is not None:
                    metrics.close()
                raise Interrupted(
                    f"{recipe.name} was stopped after step {step} of {settings.steps} and saved in {run}; "
                    f"continue with: make resume RUN={run}",
                    totals.stop,
                )
        writer.close()
        summary = {"steps": settings.steps, "loss": loss, "seconds": time.monotonic() - began, "resumed_after": done}
        if metrics is not None:
            metrics.close()
            write_json(run / "step.json", {"step": recipe.stage, "inputs": inputs, "summary": summary})
    return summary


def forward_step(
    batches: Iterator[PackedBatch], model: torch.nn.Module, *, categories: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Per-token loss of one micro-batch, and the function that Megatron's schedule calls to sum it."""
    batch = next(batches)
    losses = model(
        batch.tokens,
        batch.position_ids,
        batch.cu_seqlens,
        batch.patches,
        batch.grid_thw,
        batch.image_slots,
        labels=batch.labels,
    )
    return losses, partial(sum_loss, batch, categories)


def sum_loss(batch: PackedBatch, categories: int, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the loss over the target tokens, their number, and both per category for the log."""
    masked = losses.float().view(-1) * batch.loss_mask
    segment = torch.repeat_interleave(batch.segment_category, batch.cu_seqlens.diff().long())
    by_category = torch.stack(
        [
            torch.bincount(segment, weights=masked.detach(), minlength=categories),
            torch.bincount(segment, weights=batch.loss_mask, minlength=categories),
        ]
    )
    return masked.sum(), batch.loss_mask.sum().int(), {"by_category": by_category}


class StepTotals:
    """Sums over all micro-batches and ranks of a step."""

    def __init__(self, by_category: Tensor, skipped: int, stop: int, real: Work, slots: Work) -> None:
        self._by_category = by_category  # float64 [2, categories]: sum of losses, number of target tokens
        self.loss_sum, self.tokens = by_category.sum(1)
        self.skipped, self.stop, self.real_work, self.slot_work = skipped, stop, real, slots

    def by_category(self, names: Sequence[str]) -> dict[str, float]:
        """Mean loss of the categories that occurred."""
        return {
            name: float(total / count)
            for name, total, count in zip(names, *self._by_category.tolist(), strict=True)
            if count
        }


def reduce_totals(losses: list[dict[str, Tensor]], batches: list[PackedBatch], stop: StopRequest) -> StepTotals:
    """Totals of a step over the data-parallel ranks; every rank learns of a stop that any rank was asked for."""
    by_category = sum((entry["by_category"].double() for entry in losses), start=torch.zeros(()))
    counts = torch.tensor([sum(batch.skipped for batch in batches)], dtype=torch.float64)
    signum = torch.tensor([float(stop.signum)], dtype=torch.float64)
    images = [patches for batch in batches for patches in batch.grid_thw.prod(1).tolist()]
    real = Work([length for batch in batches for length in batch.sample_lengths.tolist()], images)
    slots = Work([length for batch in batches for length in batch.cu_seqlens.diff().tolist()], images)
    group = parallel_state.get_data_parallel_group()
    if group.size() > 1:
        counts, signum = counts.to(by_category.device), signum.to(by_category.device)
        dist.all_reduce(by_category, group=group)
        dist.all_reduce(counts, group=group)
        dist.all_reduce(signum, op=dist.ReduceOp.MAX, group=group)
        works: list[Any] = [None] * group.size()
        dist.all_gather_object(works, (real, slots), group=group)
        real = Work([n for w, _ in works for n in w.segments], [n for w, _ in works for n in w.images])
        slots = Work([n for _, w in works for n in w.segments], [n for _, w in works for n in w.images])
    return StepTotals(by_category.cpu(), int(counts.item()), int(signum.item()), real, slots)


def refuse_divergence(what: str, value: float, step: int, corpus: CorpusReader, batches: list[PackedBatch]) -> None:
    """Stop a run whose loss or gradient is not a number, naming the samples.

    Raises:
        Diverged: with the ids of the batch's samples.
    """
    if value != value or value in (float("inf"), float("-inf")):
        ids = [corpus.index.id[int(row)].decode() for batch in batches for row in batch.sample_ids.tolist()]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise Diverged(f"step {step}: {what} is {value}; samples of the batch: {shown}")


def run_folder(path: str | Path) -> Path:
    """A run folder named by its path.

    Raises:
        InputError: it is not one.
    """
    run = Path(path)
    if not (run / "recipe.yaml").exists():
        raise InputError(f"{run} is not a run folder: it has no recipe.yaml")
    return run
