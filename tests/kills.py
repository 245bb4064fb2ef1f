"""Commands that tests kill from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def kill_after_parts(command: Sequence[str], work: Path, parts: int, seconds: float = 200.0) -> None:
    """Start a step in a session of its own and kill -9 all of its processes once `parts` of it are done.

    Raises:
        TimeoutError: they were not, in time.
    """
    job = subprocess.Popen(command, start_new_session=True)
    try:
        end = time.monotonic() + seconds
        while len(list(work.glob("part-*.json"))) < parts and job.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"{work} did not get {parts} parts")
            time.sleep(0.0005)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
