"""Values that a thread makes ahead: their order, how many there are at once, and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from onevision.convert.ahead import ahead


def test_values_come_in_order_and_never_too_many() -> None:
    sizes = [3, 1, 1, 10, 2, 2, 7, 1, 12, 1]
    made: list[int] = []
    done = 0

    def maker(number: int) -> Callable[[], int]:
        def make() -> int:
            held = sizes[done : number + 1]
            assert len(held) == 1 or sum(held) <= 8
            made.append(number)
            return number

        return make

    furthest = 0
    with closing(ahead([(size, maker(n)) for n, size in enumerate(sizes)], limit=8)) as values:
        for number, value in enumerate(values):
            assert value == number
            end = time.monotonic() + 0.02  # the thread goes on while this value is in use
            while time.monotonic() < end:
                furthest = max(furthest, len(made) - number - 1)
            done = number + 1
    assert made == list(range(len(sizes))) and furthest >= 2


def test_an_error_comes_in_its_turn_and_the_thread_ends() -> None:
    def fail() -> int:
        raise KeyError("lost")

    before = threading.active_count()
    values = ahead([(1, lambda: 1), (1, fail), (1, lambda: 3)], limit=100)
    assert next(values) == 1
    with pytest.raises(KeyError, match="lost"):
        next(values)
    assert threading.active_count() == before


def test_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    with closing(ahead([(1, lambda: 1)] * 100, limit=2)) as values:
        assert next(values) == 1
    assert threading.active_count() == before
