"""A call as it runs inside a job: what it makes of signals and errors, what it leaves for the launcher."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle
import submitit
from submitit.helpers import TorchDistributedEnvironment

from jobs.attempt import Attempt, write_identity
from jobs.terminal import LOG_ONLY
from onevision.errors import Interrupted, OneVisionError
from onevision.files import storage_errors

_RESERVE_BYTES = 1 << 20  # kept free for the outcome of a job that fills the disk


@dataclass(frozen=True)
class Outcome:
    """What a process of a job leaves: exit code 0 and its pickled value, or a line for the user."""

    exit_code: int
    message: str = ""
    value: bytes = b""


class Call:
    """Picklable `call(*args)`; calling it returns an Outcome, whatever happens."""

    def __init__(self, name: str, attempt: Attempt, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._name, self._attempt = name, attempt
        # Loading it imports the job's modules: done in `__call__`, where errors are caught and signals heard.
        self._payload = cloudpickle.dumps((call, args))

    def __call__(self) -> Outcome:
        rank = submitit.JobEnvironment().global_rank
        log = self._attempt.log(rank)
        reserve = self._attempt.work / f"{rank}.reserve"
        stop = _enter_job()
        try:
            with storage_errors(log.parent):
                reserve.write_bytes(bytes(_RESERVE_BYTES))
                write_identity(self._attempt.identity(rank))
                call, args = cloudpickle.loads(self._payload)
                return Outcome(0, value=cloudpickle.dumps(call(*args)))
        except OneVisionError as error:
            line = " ".join(str(error).split("\n"))
            _leave_in_log(line)
            return Outcome(error.exit_code, line)
        except KeyboardInterrupt:
            line = f"job {self._name} was stopped; the same command starts it again"
            return Outcome(Interrupted(line, stop.signum or signal.SIGINT).exit_code, line)
        except Exception as error:
            _leave_in_log(traceback.format_exc())
            what = ": ".join([type(error).__name__, *str(error).split("\n")[:1]])
            return Outcome(1, f"job {self._name} failed: {what}; see {log}")
        finally:
            # The job is over: a late signal must not keep its outcome from being written.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            reserve.unlink(missing_ok=True)


def _leave_in_log(text: str) -> None:
    with suppress(OSError):  # the disk may be full
        print(LOG_ONLY, text, flush=True)


class _FirstSignal:
    """Handler of a job that has none of its own: the first signal raises KeyboardInterrupt, a repetition does
    not disturb the cleaning up."""

    def __init__(self) -> None:
        self.signum = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum = signum
            raise KeyboardInterrupt


def _enter_job() -> _FirstSignal:
    if os.getpgrp() != os.getpid():
        os.setsid()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)  # a terminal that is closed must not wait for the job
    faulthandler.enable()
    distributed = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if distributed.world_size == distributed.local_world_size:
        os.environ["MASTER_ADDR"] = "127.0.0.1"  # a machine need not know its own name
    stop = _FirstSignal()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return stop
