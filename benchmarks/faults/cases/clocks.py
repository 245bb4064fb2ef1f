"""The clock of the system jumps by a day. Only the times that are written down may notice.

The clock is that of Python in the rank's process (`time.time`, `time.time_ns`); the machine's own is left alone.
PyTorch, gloo and the threads of the interpreter wait by monotonic clocks, which do not jump with it.
"""

from __future__ import annotations

import re
import time
from functools import partial

from benchmarks.faults.job import KILLED, End
from benchmarks.faults.lab import Case, Place
from benchmarks.faults.moments import Call, Injection, Moment, kill

DAY = 24 * 3600.0
_SET_UP = Moment("", "onevision.training.loop:start", 0)
_FORWARD = Moment("", "onevision.model.adapter:PatchMerger.forward", 3)


def jump(seconds: float, call: Call) -> None:
    """Set this process's clock forward, or back."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def cases() -> list[Case]:
    """Jumps in a run, on one of two ranks, and between two starts."""
    forward, back = partial(jump, DAY), partial(jump, -DAY)
    fault, limits = "clock jumps", ("train.hang_seconds=60",)
    sooner = [Injection(_SET_UP, back)]
    return [
        Case(fault, "a day forward", injections={0: [Injection(_FORWARD, forward)]}, settings=limits, check=_eta),
        Case(fault, "a day back", injections={0: [Injection(_FORWARD, back)]}, settings=limits, check=_eta),
        Case(
            fault,
            "a day back on one of two",
            2,
            injections={1: [Injection(_FORWARD, back)]},
            settings=limits,
            check=_eta,
        ),
        Case(
            fault,
            "a day back between two starts",
            codes=(KILLED,),
            injections={0: [Injection(Moment("", _FORWARD.function, 5), kill)]},
            again={0: sooner},
        ),
    ]


def _eta(place: Place, end: End) -> list[str]:
    """The time that is left, as it was shown: seconds, not hours."""
    odd = re.search(r"ETA (\d+:\d+:\d+|-|\?)", end.shown)
    return [f"shown: {odd[0]}"] if odd else []
