"""Reading the next tensors while the ones before are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from threading import Condition, Thread
from typing import TypeVar

T = TypeVar("T")

AHEAD = 1 << 28  # bytes: more than a layer's largest group, and little beside the embedding of a model


def ahead(makers: Sequence[tuple[int, Callable[[], T]]], limit: int = AHEAD) -> Generator[T, None, None]:
    """The values of calls, in order, made by a thread while whoever iterates works with the ones before.

    `makers` are calls and the bytes of what each makes. Values that are made, and that which was given out last and
    still may be held by its user, have `limit` bytes together; beyond that one is made only when its user waits for it.
    What a call raises is raised where its value would be given out.
    """
    changed = Condition()
    ready: deque[T] = deque()
    failed: list[BaseException] = []
    held, waiting, stopped = 0, False, False

    def run() -> None:
        nonlocal held
        for size, make in makers:
            with changed:
                while not stopped and held + size > limit and not (waiting and not ready):
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
        last = 0  # bytes of the value that was given out
        for size, _ in makers:
            with changed:
                waiting = True
                changed.notify_all()
                changed.wait_for(lambda: ready or failed)
                waiting = False
                if not ready:
                    raise failed[0]
                value = ready.popleft()
                held, last = held - last, size
                changed.notify_all()
            yield value
            del value
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join()
