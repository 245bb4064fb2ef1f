"""A call as it runs in a process of a job on this machine, and what it leaves for the launcher."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
from submitit.helpers import TorchDistributedEnvironment

from jobs.attempt import Attempt, write_identity
from jobs.outcome import Outcome, outcome_of

_RESERVE_BYTES = 1 << 20  # kept free for the outcome of a job that fills the disk


class Call:
    """Picklable `call(*args)` of a job on this machine; calling it returns an Outcome, whatever happens."""

    def __init__(self, name: str, attempt: Attempt, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._name, self._attempt = name, attempt
        # Loading it imports the job's modules: done in `__call__`, where errors are caught and signals heard.
        self._payload = cloudpickle.dumps((call, args))

    def __call__(self) -> Outcome:
        rank = submitit.JobEnvironment().global_rank
        self._enter(rank)
        reserve = self._attempt.work / f"{rank}.reserve"

        def work() -> bytes:
            reserve.write_bytes(bytes(_RESERVE_BYTES))
            write_identity(self._attempt.identity(rank))
            call, args = cloudpickle.loads(self._payload)
            return cloudpickle.dumps(call(*args))

        try:
            return outcome_of(self._name, self._attempt.log(rank), work)
        finally:
            reserve.unlink(missing_ok=True)

    def _enter(self, rank: int) -> None:
        if os.getpgrp() != os.getpid():
            os.setsid()
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)  # a terminal that is closed must not wait for the job
        distributed = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if distributed.world_size == distributed.local_world_size:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # a machine need not know its own name
        os.environ["RANK_RECORD"] = str(self._attempt.record(rank))
