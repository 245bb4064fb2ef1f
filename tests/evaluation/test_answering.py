"""Answers are kept one by one: killed, damaged and failed ones are asked again, and nothing else is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onevision.errors import DataError
from onevision.evaluation.harness.answering import FAILED_IN_A_ROW, Asked, answer_all
from onevision.evaluation.harness.responses import Response, ResponseStore, response_key
from tests.forks import wait_for


def _asked(count: int, group: str = "") -> list[Asked[int]]:
    return [Asked(f"key-{i}", "task", i, group or str(i % 2), i) for i in range(count)]


class Model:
    """Answers a number with its square; `broken` ones raise, `once` ones the first time only."""

    def __init__(self, broken: set[int] | None = None, once: set[int] | None = None) -> None:
        self.broken, self.once = broken or set(), once or set()
        self.calls: list[list[int]] = []

    def ask(self, numbers: list[int]) -> list[str]:
        self.calls.append(numbers)
        for number in numbers:
            if number in self.once:
                self.once.remove(number)
                raise RuntimeError(f"out of memory\nat {number}")
            if number in self.broken:
                raise ValueError(f"image {number} is\x1b[31m broken")
        return [str(number**2) for number in numbers]


def test_what_is_answered_is_not_asked_again_whoever_answered_it(tmp_path: Path) -> None:
    first, second = Model(), Model()
    store = ResponseStore(tmp_path, rank=1)
    assert answer_all(_asked(5), first.ask, store, batch_size=2) == 0
    store.close()
    assert first.calls == [[0, 2], [4], [1, 3]]  # those of a group together
    other = ResponseStore(tmp_path, rank=0)
    assert answer_all(_asked(8), second.ask, other, batch_size=4) == 0
    assert second.calls == [[5, 7], [6]]
    answers = [other.answer(entry.key) for entry in _asked(8)]
    assert [response.text for response in answers if response] == [str(i**2) for i in range(8)]


def test_an_exception_is_counted_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    model = Model(broken={3}, once={4})
    store = ResponseStore(tmp_path)
    assert answer_all(_asked(6, "all"), model.ask, store, batch_size=6, retries=2) == 1
    assert model.calls == [[0, 1, 2, 3, 4, 5], [0], [1], [2], [3], [3], [3], [4], [4], [5]]
    failure = store.failure("key-3")
    assert failure is not None and failure.attempts == 3
    assert failure.error == r"ValueError: image 3 is\x1b[31m broken"
    assert store.answer("key-3") is None
    answer = store.answer("key-4")
    assert answer is not None and (answer.text, answer.attempts) == ("16", 2)
    again = Model()
    assert answer_all(_asked(6), again.ask, ResponseStore(tmp_path)) == 0
    assert again.calls == [[3]]
    kept = ResponseStore(tmp_path)
    assert kept.failure("key-3") is None and kept.answer("key-3") is not None


def test_a_broken_device_ends_the_run_with_what_was_answered(tmp_path: Path) -> None:
    model = Model(broken=set(range(2, 100)))
    with pytest.raises(DataError, match=f"{FAILED_IN_A_ROW} questions failed in a row, .*ValueError: image"):
        answer_all(_asked(100), model.ask, ResponseStore(tmp_path), retries=0)
    assert len(ResponseStore(tmp_path)) < 100
    assert ResponseStore(tmp_path).answer("key-0") is not None


def test_a_key_is_of_everything_that_decides_an_answer() -> None:
    base = ("mmstar", 3, 0, "What?", {"max_new_tokens": 8}, "settings")
    others = [("ai2d", 4, 1, "Who?", {"max_new_tokens": 9}, "others")[i] for i in range(6)]
    keys = {response_key(*base)} | {
        response_key(*(other if i == n else value for i, value in enumerate(base)))  # type: ignore[arg-type]
        for n, other in enumerate(others)
    }
    assert len(keys) == 7


SLOW = """
import signal, sys
from pathlib import Path
from onevision.evaluation.harness.answering import Asked, answer_all
from onevision.evaluation.harness.responses import ResponseStore

def ask(numbers):
    if 3 in numbers:
        Path(sys.argv[1], "waits").touch()
        signal.pause()
    return [str(number**2) for number in numbers]

asked = [Asked(f"key-{i}", "task", i, "all", i) for i in range(6)]
answer_all(asked, ask, ResponseStore(sys.argv[1]))
"""


def test_killed_and_cut_off_it_goes_on(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "waits").exists)
    finally:
        child.kill()
        child.wait()
    path = tmp_path / "responses.rank0.jsonl"
    assert [json.loads(line)["document"] for line in path.read_text().splitlines()] == [0, 1, 2]
    os.truncate(path, path.stat().st_size - 5)  # the kill was in the middle of a line
    model = Model()
    assert answer_all(_asked(6), model.ask, ResponseStore(tmp_path)) == 0
    assert sorted(number for call in model.calls for number in call) == [2, 3, 4, 5]
    store = ResponseStore(tmp_path)
    assert [store.answer(f"key-{i}") is not None for i in range(6)] == [True] * 6


def test_a_later_failure_does_not_hide_an_answer(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)
    store.add([Response("a", "task", 0, "yes"), Response("b", "task", 1, "", "first")])
    store.add([Response("a", "task", 0, "", "later"), Response("b", "task", 1, "no")])
    again = ResponseStore(tmp_path, rank=1)
    first, second = again.answer("a"), again.answer("b")
    assert first is not None and second is not None
    assert (first.text, second.text) == ("yes", "no")
