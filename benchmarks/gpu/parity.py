"""Section 4: whether training on this GPU computes what it should.

It is the suite's own training (`onevision.training.loop.train`) on its own data, from records to packs:

- the loss in BF16 (and FP8) against FP32, same seed and batches, over all steps;
- two runs of the same: whether they are equal bit for bit;
- a run that goes on from its checkpoint against the run that was not interrupted.

Of 140m, a step of 2,048 tokens with up to 5,000 patches is 2e12 operations: 12 layers of 6.9e6 weights and a head of
12.6e6 for every token, 8 layers of 3.1e6 for every patch, six operations each. In FP32 without TF32 an H100 does 25 to
45e12 a second: 50 to 80 ms a step, 10 to 16 s for 200. In BF16 the host decides, with 30 to 60 ms a step. With starts,
60 steps more, and the corpus where it was not made ahead, 75 to 120 s are to be expected.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.checks import Findings, say
from benchmarks.gpu.corpus import corpus_of
from benchmarks.gpu.curves import draw_curves
from benchmarks.gpu.section import reason_of
from jobs.ranks import ready_model
from onevision.errors import Interrupted
from onevision.machine import version
from onevision.recipe import recipe_from
from onevision.training.history import read_metrics

WINDOW = 10  # steps of the running mean: what single batches do to both curves alike is no difference of training
GOAL = 0.01  # of BF16; FP8 rounds products to 3 bits
GOAL_FP8 = 0.03
FELL = 0.7  # a run that learned ends below this share of its first loss


@dataclass(frozen=True)
class Trial:
    """One size of run, and how to make its recipes."""

    scratch: Path
    data: dict[str, Any]
    preset: str
    micro_batch_size: int
    workers: int
    threads: int

    def folder(self, name: str) -> Path:
        """The run folder of a run."""
        return self.scratch / name.replace(",", "").replace(" ", "-")

    def values(self, name: str, steps: int, changes: dict[str, Any], interval: int | None = None) -> dict[str, Any]:
        """The recipe of one run, as plain values; `changes` replaces values of its sections."""
        values: dict[str, Any] = {
            "name": name,
            "output": str(self.folder(name)),
            "seed": 1,
            "model": {"preset": self.preset},
            "data": {**self.data, "workers": self.workers},
            "optimizer": {"lr": 5e-4, "min_lr": 5e-5, "eps": 1e-8, "weight_decay": 0.05, "warmup_fraction": 0.1},
            "train": {
                "steps": steps,
                "micro_batch_size": self.micro_batch_size,
                "global_batch_size": self.micro_batch_size,
                "hang_seconds": 0.0,
                "threads": self.threads,
            },
            "checkpoint": {"interval": interval or steps, "keep": 2},
        }
        for section, change in changes.items():
            values[section] = {**values[section], **change}
        return values


PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"train": {"precision": "fp32"}},
    "bf16": {"train": {"precision": "bf16"}},
    "bf16, Transformer Engine": {"train": {"precision": "bf16"}, "model": {"backend": "transformer_engine"}},
    "fp8 tensorwise": {"train": {"precision": "fp8", "fp8_recipe": "tensorwise"}},
    "fp8 delayed": {"train": {"precision": "fp8", "fp8_recipe": "delayed"}},
}
# These have PyTorch's modules, whatever else is installed: they are measured on every GPU.
PLAIN = ("fp32", "bf16")
TORCH = {"model": {"backend": "torch"}}


def precisions() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The runs that this machine can do, as changes of a recipe; and the others with the reason."""
    found, missing = {}, {}
    for name, changes in PRECISIONS.items():
        if name in PLAIN:
            found[name] = {**changes, **TORCH}
        elif version("transformer-engine") is None:
            missing[name] = "Transformer Engine is not installed"
        elif name.startswith("fp8") and torch.cuda.get_device_capability() < (8, 9):
            missing[name] = "the GPU has no FP8"
        else:
            found[name] = changes
    return found, missing


def check(
    findings: Findings,
    scratch: Path,
    preset: str = "140m",
    steps: str = "200",
    short: str = "20",
    sequence_length: str = "2048",
    micro_batch_size: str = "1",
    workers: str = "4",
    threads: str = "0",
    share: str = "1.0",
) -> None:
    """All three, with `steps` steps for the first and `short` for the others; `share` of the corpus is drawn.

    What needs Transformer Engine comes last: the rest is there on every GPU. Curves that an earlier piece of the check
    has to their end are not trained again: seed, batches and code are the same.
    """
    ready_model()
    began = time.perf_counter()
    data = corpus_of(scratch, preset, int(sequence_length), float(share))
    seconds = time.perf_counter() - began
    findings.fact("waiting for the corpus: drawn, imported, packed", seconds, "s")
    say(f"the corpus is there after {seconds:.0f} s")
    trial = Trial(scratch, data, preset, int(micro_batch_size), int(workers), int(threads))
    size = f"{preset}, {steps} steps of {micro_batch_size} x {sequence_length} tokens"
    findings.facts["size"] = size
    possible, missing = precisions()
    _curves(findings, trial, {name: possible[name] for name in PLAIN}, int(steps), size)
    _again(findings, trial, possible["bf16"], int(short))
    _resumed(findings, trial, possible["bf16"], int(short))
    _curves(findings, trial, {name: possible[name] for name in possible if name not in PLAIN}, int(steps), size)
    for name, reason in missing.items():
        findings.unchecked(name, reason)


def run(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Train as `values` say; the rows of its metrics."""
    from onevision.training.loop import train

    recipe = recipe_from(values)
    try:
        train(recipe)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return read_metrics(recipe.output)


def losses(rows: Sequence[dict[str, Any]]) -> list[float]:
    """The losses of all steps."""
    return [row["loss"] for row in rows]


def smoothed(values: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """The mean of the last `window` values, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def relative(one: Sequence[float], other: Sequence[float]) -> np.ndarray:
    """How far `one` is from `other` at each step, smoothed, as a share of `other`."""
    reference = smoothed(other)
    return np.abs(smoothed(one) - reference) / reference


def _curves(
    findings: Findings, trial: Trial, changes_of: Mapping[str, dict[str, Any]], steps: int, size: str
) -> None:
    """Train once for each of `changes_of`, and compare with the curve of FP32."""
    for name, changes in changes_of.items():
        began = time.perf_counter()
        before = findings.earlier
        if before is not None and len(before.curves.get(name, ())) == steps:
            curve, speed = before.curves[name], before.facts["steps"][name]
        else:
            try:
                rows = run(trial.values(name, steps, changes))
            except Interrupted:
                raise
            except Exception as error:
                findings.failed(f"training in {name}", reason_of(error))
                continue
            finally:
                shutil.rmtree(trial.folder(name) / "checkpoints", ignore_errors=True)
            curve = losses(rows)
            speed = f"{1e3 * float(np.median([row['step_seconds'] for row in rows])):.0f} ms a step"
        findings.curves[name] = curve
        findings.facts.setdefault("steps", {})[name] = speed
        last = float(smoothed(curve)[-1])
        note = f"{curve[0]:.3f} -> {last:.3f}, {speed}"
        if steps >= 10 * WINDOW:
            findings.goal(f"{name}: the loss falls", last / curve[0], "", f"below {FELL}", last < FELL * curve[0], note)
        else:
            findings.fact(f"{name}: loss at the end, of that at the start", last / curve[0], note=note)
        say(f"{name}: {note}, {time.perf_counter() - began:.0f} s in all")
        _compare(findings, name, size)
        curves = {one: findings.curves[one] for one in PRECISIONS if one in findings.curves}
        draw_curves(curves, findings.path.with_name("parity.svg"), size)


def _compare(findings: Findings, name: str, size: str) -> None:
    reference = findings.curves.get("fp32")
    if name == "fp32" or reference is None:
        return
    off = relative(findings.curves[name], reference)
    value, goal = float(off.max()), GOAL_FP8 if name.startswith("fp8") else GOAL
    note = f"{size}; mean {off.mean():.2%}, last {off[-1]:.2%}; losses smoothed over {WINDOW} steps, at all steps"
    what = f"{name} against fp32: largest difference of the loss"
    findings.goal(what, value, "", f"at most {goal:.0%}", value <= goal, note)
    say(f"{name} against fp32: at most {value:.2%} off")


def _again(findings: Findings, trial: Trial, bf16: dict[str, Any], steps: int) -> None:
    """The same run twice. The first one's checkpoint half-way is what `_resumed` goes on from."""
    try:
        one = losses(run(trial.values("once", steps, bf16, interval=steps // 2)))
        two = losses(run(trial.values("twice", steps, bf16)))
    except Interrupted:
        raise
    except Exception as error:
        findings.failed("two equal runs", reason_of(error))
        return
    findings.curves |= {"once": one, "twice": two}
    findings.fact(f"bf16: two runs of {steps} steps", difference(two, one), note="the loss of every step")


def _resumed(findings: Findings, trial: Trial, bf16: dict[str, Any], steps: int) -> None:
    """A run folder as a kill after the checkpoint half-way leaves it, continued."""
    name, half, once = f"bf16: {steps // 2} + {steps // 2} steps over a checkpoint", steps // 2, trial.folder("once")
    whole = findings.curves.get("once")
    if whole is None:
        findings.unchecked(name, "the run to continue failed")
        return
    again = trial.folder("again")
    try:
        later = shutil.ignore_patterns(f"step_{steps:08d}", "step.json")
        shutil.copytree(once, again, ignore=later)
        values = trial.values("once", steps, bf16, interval=half)
        resumed = losses(run({**values, "output": str(again)}))
    except Interrupted:
        raise
    except Exception as error:
        findings.failed(name, reason_of(error))
        return
    findings.curves["resumed"] = resumed
    # Two runs of the same may differ by the order of sums; the first step after the checkpoint has the same weights.
    first = difference(resumed[: half + 1], whole[: half + 1])
    note = f"to the end: {difference(resumed, whole)}"
    findings.goal(f"{name}: the first step after it", first, "", "equal", first == EQUAL, note)
    say(f"resumed: first step {first}, to the end {difference(resumed, whole)}")


EQUAL = "equal bit for bit"


def difference(found: Sequence[float], expected: Sequence[float]) -> str:
    """How two curves differ, in words."""
    if list(found) == list(expected):
        return EQUAL
    if len(found) != len(expected):
        return f"{len(found)} steps instead of {len(expected)}"
    off = np.abs(np.subtract(found, expected)) / np.abs(expected)
    return f"from step {int(np.argmax(off > 0)) + 1} on, at most {off.max():.1e}"
