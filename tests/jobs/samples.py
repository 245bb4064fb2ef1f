"""Calls for the jobs that the tests start, and a launcher to start them from a process of its own.

`python -m tests.jobs.samples CALL LOG_FOLDER [argument …]` prints the value, or an error's line and exits with
its code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from onevision.errors import DataError, Interrupted, StorageError
from onevision.progress import MARK


def add(first: int, second: int) -> int:
    """A value, with lines on the way."""
    print("adding")
    for done in range(1, 4):
        print(f"{MARK}adding    {done}/3")
    print("[1/2] added", file=sys.stderr)
    return first + second


def bad_data() -> None:
    """An error a user can act on."""
    raise DataError("corpus.h5: 7 rejected\nof 9")


def no_space() -> None:
    """What a library says when the disk is full."""
    raise OSError(28, "No space left on device")


def surprise() -> None:
    """An error nobody expected."""
    raise TypeError("a surprise\nwith details")


def unpicklable() -> object:
    """A value that cannot be sent."""
    return (part for part in "ab")


def ranks(folder: str) -> int:
    """Each process leaves what it knows about the job; rank 1 ends last."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
    rank = int(os.environ["RANK"])
    time.sleep(0.3 * rank)
    Path(folder, f"rank{rank}").write_text(" ".join(os.environ[name] for name in names))
    print(f"this is rank {rank}")
    return rank


def rank_1_fails() -> None:
    """Rank 1 fails while rank 0 waits for it, as in a collective."""
    if os.environ["RANK"] == "1":
        raise StorageError("rank 1: disk full")
    time.sleep(600)


def rank_1_dies() -> None:
    """Rank 1 is killed while rank 0 waits for it."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def rank_1_saves_longer(folder: str) -> None:
    """An interrupted job whose ranks do not end together."""
    if os.environ["RANK"] == "1":
        time.sleep(1.5)
        Path(folder, "saved").touch()
    raise Interrupted("saved", signal.SIGTERM)


def rank_1_dies_and_the_other_notices(folder: str) -> None:
    """Rank 1 is killed; rank 0 gets the error of a collective whose peer is gone, and is the first to end with it."""
    mark = Path(folder) / "rank 1"
    if os.environ["RANK"] == "1":
        mark.write_text(str(os.getpid()))
        time.sleep(600)
    while not mark.exists() or not mark.read_text():
        time.sleep(0.01)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    raise RuntimeError("Connection closed by peer")


def crash() -> None:
    """A segmentation fault."""
    ctypes.string_at(0)


def wait(process_file: str) -> None:
    """A job without signal handlers of its own, with a child, that cleans up when it is interrupted."""
    child = os.fork()
    if not child:
        time.sleep(600)
    Path(process_file).with_suffix(".child").write_text(str(child))
    print("waiting", flush=True)
    Path(process_file).write_text(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        os.kill(child, signal.SIGKILL)
        time.sleep(0.3)
        Path(process_file).with_suffix(".cleaned").touch()


def steps(process_file: str, stubborn: str = "") -> str:
    """A loop that finishes its step and saves when it is signalled, and is slow about it when `stubborn`."""
    heard: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        heard.append(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handle)
    print("training", flush=True)
    Path(process_file).write_text(str(os.getpid()))
    for _ in range(6000):
        time.sleep(0.1)
        if heard and stubborn != "yes":
            time.sleep(0.5)  # long enough for a repeated signal to arrive
            print("saved", flush=True)
            if stubborn == "finishes":
                return "done"
            raise Interrupted(f"saved after {len(heard)} signal", heard[0])
    return "never stopped"


def main() -> int:
    """Launch one of the calls above."""
    from jobs.here import launch
    from onevision.errors import OneVisionError
    from tests.jobs import samples

    name, log_folder, *arguments = sys.argv[1:]
    try:
        print("value:", launch(name, getattr(samples, name), *arguments, log_folder=Path(log_folder)))
    except OneVisionError as error:
        print(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
