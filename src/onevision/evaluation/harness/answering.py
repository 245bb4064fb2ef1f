"""Asking a model many questions: what is answered is not asked again, what fails is counted and never made up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from onevision.errors import DataError, StorageError, line_of
from onevision.evaluation.harness.responses import Response, ResponseStore
from onevision.progress import Progress

Q = TypeVar("Q")
FAILED_IN_A_ROW = 20  # after which something else than the questions is broken


@dataclass(frozen=True)
class Asked(Generic[Q]):
    """A question as the model is asked it, and the key of its answer. Only those of a `group` are asked together."""

    key: str
    task: str
    document: int
    group: str
    question: Q


def answer_all(
    asked: Sequence[Asked[Q]],
    ask: Callable[[list[Q]], list[str]],
    store: ResponseStore,
    *,
    batch_size: int = 1,
    retries: int = 1,
    name: str = "answers",
) -> int:
    """Ask what has no answer in the store, `batch_size` at a time; returns how many questions have failed.

    When `ask` raises, the questions of its batch are asked one by one, each up to `retries` times more; one that raises
    every time is stored as failed, with the exception's line.

    Raises:
        DataError: many failed in a row, so that the next ones would too (a lost GPU).
        StorageError: the disk is full; what was answered is kept.
    """
    missing = [entry for entry in asked if store.answer(entry.key) is None]
    failed = row = 0
    with Progress(name, len(asked), "questions", start=len(asked) - len(missing)) as progress:
        for batch in _batches(missing, batch_size):
            responses = _ask(batch, ask, retries)
            store.add(responses)
            for response in responses:
                failed += bool(response.error)
                row = row + 1 if response.error else 0
            progress.advance(len(batch), note=f"{failed} failed" if failed else "")
            if row >= FAILED_IN_A_ROW:
                raise DataError(
                    f"{row} questions failed in a row, the last one ({responses[-1].task} {responses[-1].document}) "
                    f"with: {responses[-1].error}; {store.folder} keeps what was answered, and the same command goes on"
                )
    return failed


def _batches(entries: Sequence[Asked[Q]], size: int) -> list[list[Asked[Q]]]:
    groups: dict[str, list[Asked[Q]]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _ask(batch: list[Asked[Q]], ask: Callable[[list[Q]], list[str]], retries: int) -> list[Response]:
    began = time.monotonic()
    error = ""
    try:
        texts = ask([entry.question for entry in batch])
        seconds = (time.monotonic() - began) / len(batch)
        return [
            Response(entry.key, entry.task, entry.document, text, seconds=seconds)
            for entry, text in zip(batch, texts, strict=True)
        ]
    except StorageError:
        raise
    except Exception as failure:  # whatever it is, it is this question's, and is counted
        error = line_of(failure)
    # Not inside `except`: the failure's frames hold the tensors of the batch, which may be why there is no memory left.
    if len(batch) > 1:
        return [response for entry in batch for response in _ask([entry], ask, retries)]
    (entry,) = batch
    if retries > 0:
        (again,) = _ask(batch, ask, retries - 1)
        return [
            Response(again.key, again.task, again.document, again.text, again.error, again.attempts + 1, again.seconds)
        ]
    return [Response(entry.key, entry.task, entry.document, "", error, seconds=time.monotonic() - began)]
