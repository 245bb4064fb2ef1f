"""The training loop, from recipe to finished run, to be read from top to bottom."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

from megatron.core import parallel_state

from onevision.data.loader import PackLoader
from onevision.errors import InputError, Interrupted
from onevision.evaluation.harness.places import awaited
from onevision.files import read_json, remove_temporaries, write_json
from onevision.lineage import write_lineage
from onevision.model.backend import machine_problems
from onevision.model.device import Ranks, runtime_context, select_device, set_threads, start
from onevision.model.layout import training_problems
from onevision.recipe import Recipe
from onevision.training import checkpoint, checkpoint_files, local_state
from onevision.training.agreement import agreed, all_ranks, everyone, highest, of_first_rank
from onevision.training.determinism import set_determinism
from onevision.training.environment import training_facts, write_environment
from onevision.training.flops import device_peak
from onevision.training.guard import Guard
from onevision.training.heartbeat import Heartbeat
from onevision.training.inputs import open_inputs, parents, verified_start
from onevision.training.local_copy import LocalCopies, discard, let_go
from onevision.training.metrics import Metrics, TrainingProgress, step_row
from onevision.training.optimizer import gathered_weights
from onevision.training.parts import build_model, build_parts
from onevision.training.precision import allow_tf32
from onevision.training.profiling import StepProfiler
from onevision.training.replica import join_replica
from onevision.training.run import lock_run, open_run, run_folder
from onevision.training.stepper import Stepper


class StopRequest:
    """Ctrl-C, SIGTERM or SIGUSR2 asks for a stop after the current step; the loop saves and leaves."""

    def __init__(self) -> None:
        self.signum = 0
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


def initialise(recipe: Recipe) -> dict[str, Any]:
    """Write the stage-0 checkpoint of a model initialised from the seed; returns the summary."""
    run = run_folder(recipe, {})
    with lock_run(run):
        open_run(recipe, {})
        if (run / "step.json").exists():
            return read_json(run / "step.json")["summary"]
        device = start(Ranks(), recipe.seed)
        set_threads(recipe.train.threads, 1)
        with runtime_context(device):
            # Weights do not depend on the backend: those for a GPU can be drawn where there is none.
            model = build_model(replace(recipe, model=replace(recipe.model, backend="auto", attention="auto")), device)
            writer = checkpoint.Checkpointer(run, model.architecture, keep=1, asynchronous=False)
            writer.save(0, [model])
        write_lineage(run, {}, {})
        summary = {"parameters": sum(parameter.numel() for parameter in model.parameters()), "steps": 0}
        write_json(run / "step.json", {"step": recipe.stage, "summary": summary})
    return summary


def train(
    recipe: Recipe,
    ranks: Ranks | None = None,
    on_hang: Callable[[str, int], None] | None = None,
    on_checkpoint: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train one stage to its end, from its last complete checkpoint if there is one; returns the summary.

    A rank that hangs ends its process after `on_hang(message, step)`: see `Heartbeat`. The first rank calls
    `on_checkpoint(step)` when a checkpoint stands.

    Raises:
        InputError: recipe, corpus, packs, tokenizer or start weights do not fit together.
        Busy: another process trains in the run's folder.
        Interrupted: a signal asked for a stop; the state was saved.
        StorageError: the disk is full; earlier checkpoints are untouched.
        Diverged: loss or gradient is not a number, or a spike; nothing was saved after it. Recipes may say otherwise.
        Suspect: it may be the hardware's fault; another node should compute it.
    """
    stop = StopRequest()
    ranks = ranks or Ranks()
    settings = recipe.train
    begun = bool(checkpoint_files.checkpoint_steps(recipe.output))
    problems = training_problems(recipe, ranks.world_size, begun=begun)
    problems += machine_problems(
        recipe.model, recipe.train, recipe.optimizer, select_device(ranks.local_rank), recipe.performance
    )
    if problems:
        raise InputError("; ".join(problems))
    inputs = open_inputs(recipe)
    run = run_folder(recipe, inputs.fingerprints)
    first = ranks.rank == 0
    hang_seconds = settings.hang_seconds
    # Torch's own limit is the longer one, so that a rank that hangs ends as one, with its stacks.
    patience_minutes = math.ceil(hang_seconds / 60) + 5 if hang_seconds else 30
    with lock_run(run) if first else nullcontext(), Heartbeat(hang_seconds, on_hang) as heartbeat:
        if first:
            open_run(recipe, inputs.fingerprints)
        heartbeat.beat(0, "joining the other ranks")
        set_determinism(settings.deterministic)
        device = start(ranks, recipe.seed, patience_minutes, recipe.parallel)
        heartbeat.beat(0, "setting up")
        all_ranks(None)  # all are here: none writes into the folder any more
        if first:
            remove_temporaries(run)
        ended = run / "step.json"
        summary = of_first_rank(read_json(ended)["summary"] if first and ended.exists() else None)
        if summary is not None:
            if recipe.checkpoint.local:
                discard(recipe, run)
            return summary
        threads = set_threads(settings.threads, ranks.local_size)
        allow_tf32(settings.tf32)
        with runtime_context(device):
            # Weights, optimizer and schedule: of the run's last checkpoint, else of the stage before.
            found = agreed(lambda: checkpoint_files.newest_of_run(run) if first else None)
            copies = LocalCopies(recipe, run) if recipe.checkpoint.local else None
            if copies is None and first:
                let_go(run)
            local = copies.newest(found[1]["step"] if found else 0) if copies is not None else None
            parts = build_parts(recipe, device)
            architecture = parts[0].architecture
            if found is None and local is None and inputs.start_from is not None:
                folder, content = inputs.start_from
                agreed(partial(verified_start, recipe, folder) if first else lambda: None)
                checkpoint.load_model(folder, content, *parts)  # before the optimizer copies its FP32 masters
            categories = inputs.sources.categories
            stepper = Stepper(recipe, parts, len(categories))
            optimizer, scheduler = stepper.optimizer, stepper.scheduler
            done, guarded = 0, None
            if local is not None:
                restored, *_ = everyone(lambda: local_state.restore(local, stepper.ddp, optimizer, scheduler))
                done, guarded = restored["step"], restored["guard"]
            elif found is not None:
                done, guarded = checkpoint.load_training(*found, parts, optimizer, scheduler)
            if first and done:
                origin = local or (found and found[0])
                print(f"{recipe.name}: continuing after step {done} of {settings.steps} from {origin}", flush=True)
            keep, waited_for = recipe.checkpoint.keep, partial(awaited, recipe, run)
            asynchronous = recipe.checkpoint.asynchronous
            saver = checkpoint.Checkpointer(
                run, architecture, keep=keep, asynchronous=asynchronous, awaited=waited_for, on_commit=on_checkpoint
            )
            if first:
                # Not those up to `done`: what is newer than `found` is broken.
                checkpoint_files.prune(run, found[1]["step"] if found else 0, keep, waited_for)
            guard = Guard(settings, saver, inputs.sources, device)
            guard.begin_after(done, guarded)

            peak = device_peak(device, settings.peak_tflops)
            if first:
                facts = training_facts(recipe, device, optimizer)
                write_environment(run, device, ranks.world_size, threads, peak, facts)
                print("\n".join(facts), flush=True)
                write_lineage(run, inputs.fingerprints, parents(recipe))
            signum = highest(stop.signum, device)
            if signum and done < settings.steps:
                raise Interrupted(
                    f"{recipe.name} was stopped before step {done + 1} of {settings.steps}, with nothing new to save; "
                    f"continue with: make resume RUN={run}",
                    signum,
                )
            metrics = Metrics(run, done) if first else None
            progress = TrainingProgress(recipe.name, done, settings.steps)
            replica = join_replica(recipe.parallel, patience_minutes)
            loader = PackLoader(
                inputs.sources,
                inputs.tokenizer,
                recipe.data,
                seed=recipe.seed,
                global_batch_size=settings.global_batch_size,
                micro_batch_size=settings.micro_batch_size,
                dp_rank=parallel_state.get_data_parallel_rank(),
                dp_size=parallel_state.get_data_parallel_world_size(),
                device=device,
                dtype=parts[0].config.params_dtype,
            )
            batches_of_steps = replica.share(loader, done, settings.steps)
            watched = recipe.profile
            watch = StepProfiler(
                run / "profile",
                ranks.rank,
                watched.first_step,
                watched.steps,
                trace=watched.trace,
                memory=watched.memory,
            )
            began = time.monotonic()

            step, skipped = done, 0
            while step < settings.steps:
                step += 1
                heartbeat.beat(step, "reading data")
                watch.before(step)
                step_began = time.perf_counter()
                batches = next(batches_of_steps)
                data_seconds = time.perf_counter() - step_began

                heartbeat.beat(step, "computing")
                learning_rate = stepper.learning_rate
                outcome = guard.step(step, stepper, batches, stop.signum)
                data_seconds += batches.seconds
                if outcome.rewind is not None:
                    if copies is not None:
                        copies.forget()
                    step, guarded = checkpoint.load_training(*outcome.rewind, parts, optimizer, scheduler)
                    guard.begin_after(step, guarded)
                    batches_of_steps.close()
                    batches_of_steps = replica.share(loader, step, settings.steps)
                    watch.close()
                    if metrics is not None:
                        metrics.close()
                        metrics = Metrics(run, step)
                    progress = TrainingProgress(recipe.name, step, settings.steps)
                    skipped = 0
                    continue
                stepper.advance()
                totals = outcome.totals
                skipped += totals.skipped
                for path in watch.after(step):
                    print(f"{recipe.name}: profile of steps {watched.first_step} to {step} in {path}", flush=True)

                last = step == settings.steps
                if metrics is not None and (last or outcome.remarks or step % settings.log_interval == 0):
                    epochs = loader.epochs(step)
                    row = step_row(
                        recipe,
                        architecture,
                        totals,
                        seconds=time.perf_counter() - step_began,
                        peak=peak[0] * ranks.world_size,
                        device=device,
                    ) | {
                        "step": step,
                        "lr": learning_rate,
                        "grad_norm": outcome.grad_norm,
                        "skipped": skipped,  # of this step and of those before it that have no row
                        "data_seconds": data_seconds,
                        "loss_by_category": totals.by_category(categories),
                        "epoch": min(epochs.values()),
                        "epoch_by_source": epochs,
                        **outcome.remarks,
                    }
                    metrics.write(row)
                    progress.show(row)
                    skipped = 0

                heartbeat.beat(step, "saving")
                saver.poll()
                if copies is not None and not last and step % recipe.checkpoint.local_interval == 0:
                    with gathered_weights(stepper.ddp):
                        more = {"step": step, "guard": guard.state_dict()}
                        copies.save(step, local_state.take(stepper.ddp, optimizer, scheduler, more))
                if last or totals.stop or step % recipe.checkpoint.interval == 0:
                    with gathered_weights(stepper.ddp):
                        state = guard.state_dict()
                        saver.save(step, parts, optimizer, scheduler, state, wait=last or totals.stop > 0)
                if totals.stop and not last:
                    watch.close()
                    if metrics is not None:
                        metrics.close()
                    raise Interrupted(
                        f"{recipe.name} was stopped after step {step} of {settings.steps} and saved in {run}; "
                        f"continue with: make resume RUN={run}",
                        totals.stop,
                    )
            watch.close()
            saver.close()
            loss = of_first_rank(metrics.last["loss"] if metrics is not None else 0.0)
    summary = {
        "steps": settings.steps,
        "loss": loss,
        "seconds": time.monotonic() - began,
        "resumed_after": done,
    }
    if metrics is not None:
        metrics.close()
        write_json(run / "step.json", {"step": recipe.stage, "inputs": inputs.fingerprints, "summary": summary})
    if copies is not None:
        discard(recipe, run)
    return summary
