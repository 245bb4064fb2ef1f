"""Reading the next tensors while the ones before are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from threading import Condition, Thread
from typing import TypeVar

T = TypeVar("T")


def ahead(makers: Sequence[tuple[int, Callable[[], T]]], limit: int) -> Generator[T, None, None]:
    """The values of calls, in order, made by a thread while whoever iterates works with the ones before.

    `makers` are calls and the bytes of what each makes. Values that are made, and that which was given out last, have
    `limit` bytes together, or are a single one. What a call raises is raised where its value would be given out.
    """
    changed = Condition()
    ready: deque[T] = deque()
    failed: list[BaseException] = []
    held, stopped = 0, False

    def run() -> None:
        nonlocal held
        for size, make in makers:
            with changed:
                while not stopped and held and held + size > limit:
                    changed.wait()
                if stopped:
                    return
                held += size
            try:
                value = make()
            except BaseException as error:
                with changed:
                    failed.append(error)
                    changed.notify_all()
                return
            with changed:
                ready.append(value)
                changed.notify_all()
            del value

    thread = Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        for size, _ in makers:
            with changed:
                changed.wait_for(lambda: ready or failed)
                if not ready:
                    raise failed[0]
                value = ready.popleft()
            yield value
            del value
            with changed:
                held -= size
                changed.notify_all()
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join()
