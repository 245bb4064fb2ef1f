"""What follows a bad step: one whose loss or gradient norm is not a finite number, or a spike.

It is found before the optimizer has changed a weight, by values that all ranks agree on, so that all do the same. What
the recipe says (`train.on_divergence`) is done: the run stops; or it goes on without the update of this step; or it
goes back to its newest checkpoint, and leaves the batch of this step out when it comes to it again. Schedule and data
go on by one step all the same. The samples are named in bad_steps.jsonl (`training/bad_steps.py`).

What a spike is measured by, and the number of steps that were skipped, are saved with every checkpoint. So a run that
was killed decides as the undisturbed one: a skip is found again when its step is computed again, and which batches are
left out is read from bad_steps.jsonl.

The row of a bad step in metrics.jsonl has `bad` (what it was) and `action`. JSON has no NaN: in place of a value that
is not finite stands that of the last good step.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from onevision.data.ledger import place_of
from onevision.data.loader import StepBatches
from onevision.data.sources import Sources
from onevision.errors import Diverged, Suspect
from onevision.recipe import TrainRecipe
from onevision.training import checkpoint_files
from onevision.training.agreement import agreed, all_ranks, highest_values
from onevision.training.bad_steps import BadSteps
from onevision.training.checkpoint import Checkpointer
from onevision.training.flops import Work
from onevision.training.rerun import TOLERANCE, attempts, use_reruns
from onevision.training.step import StepTotals, reduce_totals
from onevision.training.stepper import Stepper


@dataclass(frozen=True)
class Fault:
    """What is wrong with a step. `threshold` is that of a spike."""

    what: str  # loss, gradient norm
    value: float
    threshold: float | None = None

    def __str__(self) -> str:
        if self.threshold is None:
            return f"{self.what} is {self.value}"
        return f"{self.what} {self.value:.4g} is a spike, above {self.threshold:.4g}"


@dataclass(frozen=True)
class Pass:
    """One computation of a step. The losses are sums over target tokens: of all ranks, and of this one."""

    totals: StepTotals
    loss: float
    grad_norm: float
    own_loss: float

    def __str__(self) -> str:  # in the messages of Megatron's state machine
        return f"loss {self.loss}, gradient norm {self.grad_norm}"


@dataclass(frozen=True)
class Outcome:
    """A step that was done, or, with `rewind`, is to be done again from the checkpoint `rewind`."""

    totals: StepTotals
    grad_norm: float
    remarks: dict[str, Any] = field(default_factory=dict)  # for the step's row
    rewind: tuple[Path, dict[str, Any]] | None = None


class Guard:
    """Computes the steps of a run, and decides about bad ones. All ranks call it together."""

    def __init__(
        self,
        recipe: TrainRecipe,
        saver: Checkpointer,
        sources: Sources,
        device: torch.device,
    ) -> None:
        self._recipe, self._saver, self._sources, self._device = recipe, saver, sources, device
        self._losses: deque[float] = deque(maxlen=recipe.spike_window)  # of the last good steps
        self._norms: deque[float] = deque(maxlen=recipe.spike_window)
        self._skipped = 0
        self._records: BadSteps | None = None  # on rank 0
        self._left_out: dict[int, dict[str, Any]] = {}
        self._repeated: dict[int, dict[str, Any]] = {}
        self._validates = recipe.rerun == "validate"
        use_reruns(self._validates)

    def state_dict(self) -> dict[str, Any]:
        """What is saved with a checkpoint; the same on all ranks."""
        return {"losses": list(self._losses), "norms": list(self._norms), "skipped": self._skipped}

    def begin_after(self, step: int, state: dict[str, Any] | None) -> None:
        """Go on after `step`, with what was saved there; None: with nothing, at the start of a run or after a
        checkpoint of a version that had no guard."""
        state = state or {"losses": [], "norms": [], "skipped": 0}
        self._losses = deque(state["losses"], maxlen=self._recipe.spike_window)
        self._norms = deque(state["norms"], maxlen=self._recipe.spike_window)
        self._skipped = state["skipped"]
        self._decide(lambda: BadSteps(self._saver.run, step))

    def step(self, step: int, stepper: Stepper, batches: StepBatches, signum: int) -> Outcome:
        """Do step number `step`, but for the schedule; `signum` is a signal that this rank was sent, or 0.

        Raises:
            Diverged: the step is bad, and the recipe says stop, or there is nothing left to do.
            Suspect: it is to be computed on another node.
        """
        if step in self._left_out:
            return self._leave_out(step, batches, signum)
        done, fault, remarks = self._compute(step, stepper, batches, signum)
        if fault is None:
            stepper.update(done.grad_norm)
            self._losses.append(done.loss)
            self._norms.append(done.grad_norm)
            return Outcome(done.totals, done.grad_norm, remarks)
        self._saver.wait()  # what was saved before is good, also when the run ends here
        action, why = self._recipe.on_divergence, ""
        found = agreed(self._newest) if action == "rewind" else None
        borne = self._skipped + len(self._left_out)
        if action != "stop" and borne >= self._recipe.max_skipped_steps:
            action, why = "stop", f"; {borne} steps were skipped, as many as train.max_skipped_steps allows"
        elif action == "rewind" and found is None:
            action, why = "stop", "; there is no checkpoint to go back to"
        words = {"stop": "", "skip": ": its update is skipped", "rewind": f": back to {found and found[0]}"}[action]
        line = f"step {step}: {fault}{words}{why}; {self._record(step, fault, action, done.totals, remarks)}"
        if action == "stop":
            raise Diverged(f"{line}; to go on without this step: train.on_divergence=skip{self._more_skips(borne)}")
        self._say(line)
        if action == "rewind":
            return Outcome(done.totals, done.grad_norm, rewind=found)
        self._skipped += 1
        return Outcome(done.totals, done.grad_norm, self._remarks(str(fault), "skip", done))

    def _more_skips(self, borne: int) -> str:
        return "" if borne < self._recipe.max_skipped_steps else f" train.max_skipped_steps={2 * borne + 1}"

    def _compute(
        self, step: int, stepper: Stepper, batches: StepBatches, signum: int
    ) -> tuple[Pass, Fault | None, dict[str, Any]]:
        """The step's result, what is wrong with it, and what is to be said of it: in its row, or in that of its fault.

        Raises:
            Suspect: the result is to be computed on another node.
        """

        if self._validates:
            batches.hold()

        def once() -> Pass:
            losses = stepper.compute(batches)
            totals = reduce_totals(losses, batches.facts, signum, len(self._sources.categories))
            own = sum(float(entry["by_category"][0].sum()) for entry in losses) if self._validates else 0.0
            loss, norm = highest_values([totals.loss, stepper.gradient_norm()], self._device)
            return Pass(totals, loss, norm, own)

        passes = attempts(once, lambda one: self._fault(one) is not None, _difference)
        first, last = passes[0], passes[-1]
        before = self._repeated.get(step)
        fault = self._fault(first)
        if fault is None or len(passes) == 1:
            if fault is None and before is not None:
                self._say(f"step {step}: {before['what']} was {before['value']} before the last start, and is not now")
            return first, fault, {}
        if self._fault(last) is None:
            passes.append(once())
            if _difference(last, passes[-1]) <= TOLERANCE:
                nodes = self._nodes(passes)
                where = f"on {', '.join(nodes)}" if nodes else "in a backward pass, on a node that is not known"
                told = self._record(step, fault, "recomputed", last.totals, {"nodes": nodes})
                self._say(f"step {step}: {fault}, but not when it was computed again: an error {where}; {told}")
                return passes[-1], None, {"recomputed": str(fault)}
        elif _difference(first, last) <= TOLERANCE and before is not None:
            value = float(before["value"])
            if before["what"] == fault.what and _apart(value, fault.value) <= TOLERANCE:
                return last, fault, {"nodes": before["nodes"]}
        self._saver.wait()
        nodes = self._nodes(passes)
        same = all(_difference(first, other) <= TOLERANCE for other in passes)
        how = "the same" if same else "something else"
        told = self._record(step, fault, "elsewhere", last.totals, {"nodes": nodes})
        raise Suspect(
            f"step {step}: {fault}, and {how} when it was computed again{' on ' if nodes else ''}{', '.join(nodes)}: "
            f"to be checked on another node; {told}"
        )

    def _fault(self, done: Pass) -> Fault | None:
        for what, value, recent in (
            ("loss", done.loss, self._losses),
            ("gradient norm", done.grad_norm, self._norms),
        ):
            if not math.isfinite(value):
                return Fault(what, value)
            if self._recipe.spike_factor and len(recent) == self._recipe.spike_window:
                threshold = self._recipe.spike_factor * statistics.median(recent)
                if value > threshold > 0:
                    return Fault(what, value, threshold)
        return None

    def _leave_out(self, step: int, batches: StepBatches, signum: int) -> Outcome:
        batches.pass_over()
        totals = reduce_totals([], batches.facts, signum, len(self._sources.categories))
        done = Pass(replace(totals, real=Work([], [], 0), slots=Work([], [], 0)), math.nan, math.nan, 0.0)
        row = self._left_out[step]
        fault = Fault(row["what"], float(row["value"]), row["threshold"])
        return Outcome(done.totals, math.nan, self._remarks(f"{fault} before the rewind", "left out", done))

    def _remarks(self, bad: str, action: str, done: Pass) -> dict[str, Any]:
        remarks: dict[str, Any] = {"bad": bad, "action": action}
        if not math.isfinite(done.loss):
            remarks |= {"loss": self._losses[-1] if self._losses else 0.0, "loss_by_category": {}}
        if not math.isfinite(done.grad_norm):
            remarks["grad_norm"] = self._norms[-1] if self._norms else 0.0
        return remarks

    def _record(self, step: int, fault: Fault, action: str, totals: StepTotals, more: dict[str, Any]) -> str:
        """Write the row of a step into bad_steps.jsonl; returns where its samples are named."""

        def put() -> BadSteps:
            assert self._records is not None
            places = [place_of(self._sources, number) for number in sorted(totals.sample_ids)]
            self._records.put(
                {
                    "step": step,
                    "what": fault.what,
                    "value": fault.value if math.isfinite(fault.value) else str(fault.value),
                    "threshold": fault.threshold,
                    "action": action,
                    "time": time.time(),
                    **more,
                    "samples": [{"id": one.id, "shard": one.shard, "category": one.category} for one in places],
                }
            )
            return self._records

        self._decide(put)
        return f"its {len(totals.sample_ids)} samples are named in {self._saver.run / 'bad_steps.jsonl'}"

    def _decide(self, change: Callable[[], BadSteps]) -> None:
        """Change the file, on rank 0, and share what it now decides about steps to come."""

        def changed() -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
            self._records = change()
            return self._records.left_out(), self._records.repeated()

        self._left_out, self._repeated = agreed(changed if dist.get_rank() == 0 else lambda: ({}, {}))

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        return checkpoint_files.newest(self._saver.run) if dist.get_rank() == 0 else None

    def _nodes(self, passes: Sequence[Pass]) -> list[str]:
        """The nodes of the copies of the model whose share of the loss was no number, or changed."""
        own = [one.own_loss for one in passes]
        errs = not all(map(math.isfinite, own)) or max(own) - min(own) > TOLERANCE * abs(max(own))
        found = all_ranks((parallel_state.get_data_parallel_rank(), platform.node(), errs))
        copies = {copy for copy, _, errs in found if errs}
        return sorted({node for copy, node, _ in found if copy in copies})

    def _say(self, line: str) -> None:
        if dist.get_rank() == 0:
            print(line, flush=True)


def _difference(one: Pass, other: Pass) -> float:
    return max(_apart(one.loss, other.loss), _apart(one.grad_norm, other.grad_norm))


def _apart(one: float, other: float) -> float:
    """How far two values are apart, relative to the larger; what is not finite is 0 or infinitely far apart."""
    if math.isfinite(one) and math.isfinite(other):
        return abs(one - other) / max(abs(one), abs(other), math.ulp(0.0))
    return 0.0 if str(one) == str(other) else math.inf
