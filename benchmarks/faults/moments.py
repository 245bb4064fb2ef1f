"""What happens to a rank, and when: a function of the suite is wrapped in the rank's own process, and where it is
called for the n-th time in a step, before or after its work, the rank is killed, frozen, or finds its world changed.

So the moment is exact, and the same in every run.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from onevision.training.heartbeat import Heartbeat

ANY = -1  # whatever the step


@dataclass(frozen=True)
class Call:
    """What an action sees: the arguments of the call and, after it, its result; `rank` is the process id of the rank,
    which is not that of the process where the call happens when that is a writer of checkpoints."""

    rank: int
    args: tuple[Any, ...]
    result: Any = None


Action = Callable[[Call], None]


@dataclass(frozen=True)
class Moment:
    """The `number`-th call of `function` ("module:name" or "module:Class.name") in a step; `after`: where it returns.

    With `gradient` it is where the gradient of the call's result arrives: within the backward pass.
    """

    what: str
    function: str
    step: int = ANY
    number: int = 1
    after: bool = False
    gradient: bool = False

    @property
    def text(self) -> str:
        """For people."""
        return self.what if self.step in (ANY, 0) else f"step {self.step}: {self.what}"


@dataclass(frozen=True)
class Injection:
    """An action at a moment."""

    moment: Moment
    action: Action


def kill(call: Call) -> None:
    """kill -9 of the rank; a writer that it has started goes on, as it does when the system runs out of memory."""
    os.kill(call.rank, signal.SIGKILL)


def kill_writer(call: Call) -> None:
    """kill -9 of the process where the call happens."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(call: Call) -> None:
    """Stop the rank as a dead file system or a GPU that does not answer would."""
    os.kill(call.rank, signal.SIGSTOP)


def arm(injections: Sequence[Injection]) -> None:
    """Prepare this process, a rank that has not begun."""
    rank, clock = os.getpid(), _Clock()
    for injection in injections:
        _wrap(injection, rank, clock)


class _Clock:
    """The step that the rank is in, told by its heartbeat."""

    def __init__(self) -> None:
        self.step = 0
        beat = Heartbeat.beat

        def note(heartbeat: Heartbeat, step: int, phase: str) -> None:
            self.step = step
            beat(heartbeat, step, phase)

        Heartbeat.beat = note  # type: ignore[method-assign]


def _wrap(injection: Injection, rank: int, clock: _Clock) -> None:
    moment, action = injection.moment, injection.action
    module, _, path = moment.function.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    static = isinstance(vars(owner).get(name), staticmethod)
    seen = {"step": ANY, "calls": 0}

    def hit() -> bool:
        """Whether this is the call."""
        if moment.step not in (ANY, clock.step):
            return False
        if moment.step != ANY and seen["step"] != clock.step:
            seen.update(step=clock.step, calls=0)
        seen["calls"] += 1
        return seen["calls"] == moment.number

    @wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        now = hit()
        if now and not moment.after and not moment.gradient:
            action(Call(rank, args))
        result = original(*args, **kwargs)
        if now and moment.after:
            action(Call(rank, args, result))
        if now and moment.gradient:
            tensor = result[0] if isinstance(result, tuple) else result
            if not isinstance(tensor, torch.Tensor) or not tensor.requires_grad:
                raise ValueError(f"{moment.function} returns nothing that has a gradient")
            tensor.register_hook(lambda gradient: action(Call(rank, args, result)))
        return result

    setattr(owner, name, staticmethod(wrapped) if static else wrapped)
