"""Everything that can be refused before a job is queued: all problems at once, each with its value and what to change.

It runs on a login node: indexes are read once, for their seals (about 160 bytes a sample), shards are not; checkpoints
are judged by checkpoint.json and the sizes of their files, memory is computed.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.sites import Site
from jobs.slurm import Partition
from onevision.errors import InputError, OneVisionError
from onevision.evaluation.harness.places import awaited
from onevision.model.layout import architecture_problems, training_problems
from onevision.model.presets import PRESETS
from onevision.recipe import ParallelRecipe, Recipe, layout_problems
from onevision.recipe_evaluation import evaluated_steps
from onevision.training.checkpoint_files import checkpoint_steps
from onevision.training.inputs import check_inputs, input_names, input_paths
from onevision.training.memory import MemoryEstimate, checkpoint_bytes, memory_estimate
from onevision.training.run import conflict

# Compute capability by `gpu_type` of a site; other chips have FP8 if the profile's `fp8` says so.
CAPABILITY = {
    "V100": (7, 0),
    "A100": (8, 0),
    "A800": (8, 0),
    "A40": (8, 6),
    "L40S": (8, 9),
    "H100": (9, 0),
    "H200": (9, 0),
    "H800": (9, 0),
    "H20": (9, 0),
}
FAMILY = {7: "Volta", 8: "Ampere", 9: "Hopper"}
FP8_CAPABILITY = (8, 9)
HOPPER = 9


@dataclass(frozen=True)
class Preflight:
    """What was found: `problems`, each a reason not to start, and `notes`, lines that a person may want to know."""

    problems: list[str]
    notes: list[str]

    @property
    def text(self) -> str:
        """The notes, a line each."""
        return "\n".join(self.notes)

    def refuse(self) -> None:
        """Do nothing if there is no problem.

        Raises:
            InputError: all problems, a line each.
        """
        if len(self.problems) == 1:
            raise InputError(self.problems[0])
        if self.problems:
            raise InputError(f"{len(self.problems)} problems, nothing was queued:", *self.problems)


def preflight(
    recipe: Recipe, site: Site, nodes: int, minutes: int = 0, waits_for: Collection[str] = frozenset()
) -> Preflight:
    """Check a training job of `recipe` on `nodes` nodes of `site` for `minutes` (0: the site's time limit).

    `waits_for` has the folders that earlier jobs of a pipeline make. Inputs in them are not looked at.
    """
    if nodes < 1:
        return Preflight([f"nodes={nodes} must be at least 1"], [])
    ranks = site.ranks(nodes)
    inputs = check_inputs(recipe, waiting_keys(recipe, waits_for))
    size = checkpoint_bytes(recipe)
    problems = [
        *training_problems(recipe, ranks, begun=bool(checkpoint_steps(recipe.output))),
        *precision_problems(recipe, site),
        *attention_problems(recipe, site),
        *inputs.problems,
        *run_problems(recipe, inputs.fingerprints),
        *disk_problems(recipe, size),
        *time_problems(site, minutes or site.minutes),
    ]
    waiting = len(waiting_steps(recipe))
    notes = [
        f"a checkpoint takes {_gb(size)}, checkpoint.keep={recipe.checkpoint.keep} are kept"
        + (f", and up to {waiting} more until they have answered evaluation.tasks" if waiting else "")
    ]
    if site.gpu_memory_gb and not architecture_problems(recipe, PRESETS[recipe.model.preset]):
        patches = max((packs.most_patches for packs in inputs.packs), default=None)
        estimate = memory_estimate(recipe, ranks, patches)
        problems += memory_problems(recipe, site, estimate, ranks, patches)
        notes += estimate.lines()
    if site.scheduler == "slurm":
        try:
            partition = site_partition(site)
        except OneVisionError as error:
            problems.append(str(error))
        else:
            problems += partition_problems(site, nodes, partition, minutes or site.minutes)
            if partition.available < nodes <= partition.nodes:
                notes.append(
                    f"{partition.available} of the {partition.nodes} nodes of partition {partition.name} are in "
                    f"service: a job of {nodes} waits for the others"
                )
    return Preflight(problems, notes)


def waiting_keys(recipe: Recipe, waits_for: Collection[str]) -> set[str]:
    """Keys of the recipe's inputs that lie in one of the folders `waits_for`."""
    folders = [Path(folder).absolute() for folder in waits_for]
    return {
        key
        for key, path in input_paths(recipe).items()
        if path and any(Path(path).absolute().is_relative_to(folder) for folder in folders)
    }


def site_partition(site: Site) -> Partition:
    """The partition of the site's training jobs.

    Raises:
        InputError: Slurm has no such partition.
        SlurmError: Slurm cannot be asked.
    """
    found = site.slurm.partition(site.partition)
    if found is None:
        wanted = f"no partition {site.partition}" if site.partition else "no default partition"
        names = ", ".join(site.slurm.partitions())
        raise InputError(f"Slurm has {wanted}: set `partition` of site {site.name} to one of {names}")
    return found


def precision_problems(recipe: Recipe, site: Site) -> list[str]:
    """FP8 on a chip that has none. Of a machine without Slurm whose profile names no chip, training asks the chip."""
    known = CAPABILITY.get(site.gpu_type.upper())
    able = site.fp8 if known is None else known >= FP8_CAPABILITY
    if recipe.train.precision != "fp8" or able or (site.scheduler == "none" and not site.gpu_type):
        return []
    chip = f"{site.gpu_type} of site {site.name}" if site.gpu_type else f"site {site.name}"
    what = f"is {FAMILY[known[0]]} (compute capability {known[0]}.{known[1]}) and " if known else ""
    lowest = ".".join(map(str, FP8_CAPABILITY))
    return [
        f"train.precision=fp8: {chip} {what}has no FP8 units, which begin with {lowest}: use train.precision=bf16, or "
        "another site"
    ]


def attention_problems(recipe: Recipe, site: Site) -> list[str]:
    """Attention for Hopper on another chip. Of a chip that is not in the table, training asks the chip."""
    known = CAPABILITY.get(site.gpu_type.upper())
    if recipe.model.attention != "flash_attn_4" or known is None or known[0] == HOPPER:
        return []
    return [
        f"model.attention=flash_attn_4 is for Hopper (compute capability 9.0), and {site.gpu_type} of site {site.name} "
        f"has {known[0]}.{known[1]}: use model.attention=auto, or another site"
    ]


def time_problems(site: Site, minutes: int) -> list[str]:
    """A time limit that ends each start before it can make a step: the job would be queued again for ever."""
    if minutes * 60 >= 2 * site.signal_seconds + 120:
        return []
    return [
        f"a time limit of {minutes} minutes leaves no time to train: a job saves signal_seconds={site.signal_seconds} "
        f"before it, and Slurm may ask a minute early; give more time, or lower signal_seconds of site {site.name}"
    ]


def run_problems(recipe: Recipe, fingerprints: dict[str, str]) -> list[str]:
    """A run folder that belongs to another run. Inputs without a fingerprint are not compared."""
    if not recipe.output:
        return ["output is empty: name the run folder with output=runs/NAME"]
    try:
        problem = conflict(recipe, fingerprints, unknown=input_names(recipe) - set(fingerprints))
    except OneVisionError as error:
        problem = str(error)
    return [problem] if problem else []


def waiting_steps(recipe: Recipe) -> list[int]:
    """Steps of checkpoints that are there at the end of a run beside its newest `checkpoint.keep`, if no evaluation has
    ended by then: each stays until it has answered the recipe's tasks."""
    steps, interval, keep = recipe.train.steps, recipe.checkpoint.interval, recipe.checkpoint.keep
    newest = [*range(interval, steps, interval), steps][-keep:]
    asked = evaluated_steps(recipe.evaluation, steps)
    return [step for step in asked if step not in newest and awaited(recipe, recipe.output, step)]


def disk_problems(recipe: Recipe, size: int) -> list[str]:
    """No room at `output` for the kept checkpoints, those that wait for their evaluation, and the one that is being
    written, each of `size` bytes.

    What the run's checkpoints take already counts as room. Quotas are not seen, nor what other jobs will write.
    """
    if not recipe.output:
        return []
    run, keep = Path(recipe.output), recipe.checkpoint.keep
    there = sum(path.stat().st_size for path in (run / "checkpoints").glob("**/*") if path.is_file())
    place = run.absolute()
    while not place.exists():
        place = place.parent
    waiting = len(waiting_steps(recipe))
    needed, free = (keep + waiting + 1) * size - there, shutil.disk_usage(place).free
    if needed <= free:
        return []
    what, knobs = f"{keep} checkpoints", f"lower checkpoint.keep={keep}"
    if waiting:
        what += f", {waiting} that wait for their evaluation"
        knobs += f" or raise evaluation.interval={recipe.evaluation.interval}"
    return [
        f"output={recipe.output}: {what} and the next one, {_gb(size)} each, need {_gb(needed)} more and "
        f"{_gb(free)} are free on the disk of {place}: make room, set another output, or {knobs}"
    ]


def memory_problems(
    recipe: Recipe, site: Site, estimate: MemoryEstimate, ranks: int, patches: int | None
) -> list[str]:
    """More memory than a GPU has, by the estimate for `ranks` ranks and packs of at most so many patches."""
    if estimate.total <= site.gpu_memory_gb * 1e9:
        return []
    model, train = recipe.model, recipe.train
    knobs = []
    if model.recompute != "full":
        knobs.append(f"set model.recompute=full (is {model.recompute})")
    elif model.recompute_layers > 1:
        knobs.append(f"lower model.recompute_layers={model.recompute_layers}")
    if train.micro_batch_size > 1:
        knobs.append(f"lower train.micro_batch_size={train.micro_batch_size}")
    layouts = smaller_layouts(recipe, site, estimate.total, ranks, patches)
    knobs += [f"set {settings} (about {_gb(total)})" for settings, total in layouts]
    part = max(estimate.parts, key=lambda name: estimate.parts[name])
    return [
        f"a GPU needs about {_gb(estimate.total)} at its fullest ({estimate.moment}; the largest part is {part}, "
        f"{_gb(estimate.parts[part])}) and the {site.gpu_type or 'GPU'} of site {site.name} has "
        f"{site.gpu_memory_gb:g} GB: {', '.join([*knobs, 'or use larger GPUs'])}"
    ]


def smaller_layouts(
    recipe: Recipe, site: Site, total: float, ranks: int, patches: int | None
) -> list[tuple[str, float]]:
    """Ways to share a model among more of the ranks that need less than `total` bytes, and what they need: of each
    kind the first that fits, else the largest that the model, the packs and the number of ranks allow."""
    parallel, found = recipe.parallel, []
    for kind in ("sequence", "tensor", "context", "pipeline"):
        best: tuple[str, float] | None = None
        for changes in _larger(parallel, kind, site.ranks_per_node):
            laid = replace(recipe, parallel=replace(parallel, **changes))
            if architecture_problems(laid, PRESETS[recipe.model.preset]) or layout_problems(laid, ranks):
                continue
            needed = memory_estimate(laid, ranks, patches).total
            if needed < (best[1] if best else 0.9 * total):  # less than a tenth helps nobody
                named = (f"parallel.{key}={str(value).lower()}" for key, value in changes.items())
                best = " ".join(named), needed
            if needed <= site.gpu_memory_gb * 1e9:
                break
        if best:
            found.append(best)
    return found


def _larger(parallel: ParallelRecipe, kind: str, ranks_per_node: int) -> list[dict[str, Any]]:
    """Changes of `parallel` of one kind, the smallest first: powers of two of what it is, tensor ranks in a node."""
    if kind == "sequence":
        return [{"sequence": True}] if parallel.tensor > 1 and not parallel.sequence else []
    size = getattr(parallel, kind)
    sizes = [size * 2**power for power in range(1, 7)]
    if kind == "tensor":
        return [{"tensor": more, "sequence": True} for more in sizes if more <= ranks_per_node]
    if kind == "pipeline" and parallel.stage_layers:
        return [{"pipeline": more, "stage_layers": []} for more in sizes]
    return [{kind: more} for more in sizes]


def partition_problems(site: Site, nodes: int, partition: Partition, minutes: int) -> list[str]:
    """What a partition does not give: so many nodes, so many GPUs a node, so long."""
    problems, name = [], f"partition {partition.name}"
    if nodes > partition.nodes:
        problems.append(f"nodes={nodes} is above the {partition.nodes} nodes of {name}: use at most {partition.nodes}")
    if site.gpus_per_node > partition.gpus_per_node:
        problems.append(
            f"gpus_per_node={site.gpus_per_node} of site {site.name} is above the {partition.gpus_per_node} that each "
            f"node of {name} has: correct the profile, or choose another partition"
        )
    if partition.minutes is not None and minutes > partition.minutes:
        problems.append(
            f"the time limit {_clock(minutes)} is above MaxTime={_clock(partition.minutes)} of {name}: lower it (a job "
            "that reaches it saves, is queued again and goes on)"
        )
    if minutes * 60 <= site.signal_seconds + 60:  # Slurm sends the signal up to a minute early
        problems.append(
            f"the time limit {_clock(minutes)} leaves no time to train before the signal to save, "
            f"signal_seconds={site.signal_seconds} before its end: raise it"
        )
    return problems


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _clock(minutes: int) -> str:
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:00"
