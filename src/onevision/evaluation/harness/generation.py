"""How a task of lmms-eval wants its questions answered, for both of our models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from onevision.errors import InputError
from onevision.evaluation.sampling import GREEDY, Sampling
from onevision.fingerprint import value_digest

DEFAULT_NEW_TOKENS = 128  # where a task names no limit, as in lmms-eval's own class
NO_STOP = "\n\n"  # the default of tasks; lmms-eval's own class ignores it too, so that answers are whole
SEEDS = "drawn tokens: with a seed of task, document, request and prompt text, whichever rank answers"


class Question(NamedTuple):
    """What lmms-eval says of a question, and the `seed` of what is drawn for its answer."""

    text: str
    doc_to_messages: Callable[[Any], list[dict[str, Any]]]
    generation: dict[str, Any]
    document: int
    task: str
    split: str
    seed: int


def question_seed(task: str, document: int, number: int, text: str) -> int:
    """The seed of request `number` of a document: 32 bits of the question alone, so that neither the ranks that share
    the questions nor what is asked beside it change an answer."""
    return int(value_digest([task, document, number, text])[-8:], 16)


def sampling_of(generation: dict[str, Any], seed: int) -> Sampling:
    """How tokens are chosen: as in lmms-eval's own class drawn where `temperature` is above 0, but not where the task
    says `do_sample: false`. `top_p` and `top_k` that are not named leave all tokens.

    Raises:
        InputError: a value that cannot work.
    """
    temperature, top_p = _number(generation, "temperature", 0.0), _number(generation, "top_p", 1.0)
    if temperature == 0 or top_p == 0 or generation.get("do_sample") is False:
        return GREEDY
    return Sampling(temperature, top_p, int(_number(generation, "top_k", 0)), seed)


def check_beams(generation: dict[str, Any]) -> None:
    """Refuse what would silently be answered otherwise.

    Raises:
        InputError: the settings ask for beams.
    """
    if (generation.get("num_beams") or 1) > 1:
        raise InputError(f"generation settings {generation} ask for beams, which this model does not have")


def new_tokens(generation: dict[str, Any]) -> int:
    """How many tokens an answer may have."""
    return int(generation.get("max_new_tokens") or DEFAULT_NEW_TOKENS)


def finished(answer: str, generation: dict[str, Any]) -> str:
    """An answer up to the first of the task's stop texts, without outer blanks."""
    answer = answer.strip()
    for stop in stop_texts(generation):
        answer = answer.split(stop)[0]
    return answer.strip()


def stop_texts(generation: dict[str, Any]) -> list[str]:
    """Texts at which an answer ends."""
    until = generation.get("until") or []
    texts: Iterable[str] = [until] if isinstance(until, str) else until
    return [text for text in texts if text and text != NO_STOP]


def _number(generation: dict[str, Any], key: str, default: float) -> float:
    value = generation.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"generation settings {generation}: {key}={value} is not a number")
    return float(value)
