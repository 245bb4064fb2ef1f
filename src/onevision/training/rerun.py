"""Hardware that computes wrong without saying so: a bad step is computed again before anything follows from it.

Megatron-core's rerun state machine does the first half, in the mode VALIDATE_RESULTS: it makes all ranks agree to
compute the step a second time in place, with the random states of the first. The rest of it is left out:

- *Micro-batches are replayed* (`RerunDataIterator`): those of a step are held here, and read again.
- *What errs once.* The machine either ends the job (`fatal`) or goes on with the second result unseen. Here the second
  one must be good and must come a third time; then the run goes on with it (`training/guard.py`).
- *What comes again* is wrong on this node, or right: the batch is bad. The machine saves a checkpoint with the batch
  and its own state in it, and ends with exit code 16 until it is started on another GPU. That checkpoint loads on the
  same number of ranks only, while a step here is a pure function of the last checkpoint and the packs. So nothing is
  saved: the run leaves a row in bad_steps.jsonl and ends with the exit code of `Suspect`. When it comes to the step
  after the next start, on other nodes where the launcher has them, the same result is believed.
- *Which node.* The machine names the rank whose own value was rejected. Loss and gradient norm are sums over all ranks:
  the nodes of a copy of the model are named when its share of the loss was no number or changed. An error in a backward
  pass is found, but not placed.

The machine holds off until a first step is complete, as it could not save a checkpoint before; it is told that it is.
It reads "cuda" in literals, which the CPU's stand-ins answer. Only what shows in loss or gradient norm is found. It
costs a collective of a few bytes a step, and random states that are kept for every micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine

TOLERANCE = 1e-3  # relative; what two passes of atomic sums on a GPU may differ by

T = TypeVar("T")


def use_reruns(on: bool) -> None:
    """Set the mode of this process's machine."""
    machine = get_rerun_state_machine()
    mode = RerunMode.VALIDATE_RESULTS if on else RerunMode.DISABLED
    if machine.get_mode() != mode:
        machine.set_mode(mode)
    machine.should_checkpoint_and_exit()  # marks a first step as complete


def attempts(once: Callable[[], T], is_bad: Callable[[T], bool], difference: Callable[[T, T], float]) -> list[T]:
    """What `once` gives, and where that is bad and reruns are on, what it gives when it is called again.

    All ranks call this together; `is_bad` may differ between them. `difference` of two results is relative, 0 for equal
    ones.
    """
    machine = get_rerun_state_machine()
    if machine.get_mode() == RerunMode.DISABLED:
        return [once()]
    made: list[T] = []
    while machine.should_run_forward_backward(None):
        made.append(once())
        machine.validate_result(made[-1], is_bad, "loss or gradient norm", difference, TOLERANCE, fatal=False)
    return made
