"""Generation for many prompts at once, packed one behind the other as in training.

Every pass of the model has a segment a prompt: all its tokens the first time, the token that was chosen last from then
on. Keys and values of the tokens before are remembered (`onevision.model.cache`), images are encoded once. An answer
that has ended leaves at once, and the next prompt takes its place.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from onevision.data.image import MERGE, PATCH_VALUES
from onevision.evaluation.memory import Memory, image_count
from onevision.evaluation.prompt import Prompt
from onevision.evaluation.sampling import choose
from onevision.model.attention import SegmentAttention, cached_params
from onevision.model.cache import CachedRows, KeyValueCache, on_device
from onevision.model.onevision import OneVisionModel

__all__ = ["LENGTH", "STOP", "Event", "Prompt", "generate", "stream"]

STOP, LENGTH = "stop", "length"  # why an answer ended: the model said so, or it has as many tokens as it may


@dataclass(frozen=True)
class Event:
    """A token of an answer, or its end, or both."""

    prompt: int  # number of the prompt, in the order they were given
    token: int | None
    end: str = ""  # STOP, where there is no token, or LENGTH


@dataclass
class _Answer:
    """A prompt that is being answered."""

    number: int
    prompt: Prompt
    limit: int
    draws: np.random.Generator
    rows: np.ndarray  # of the cache, int64, of the tokens that the model has seen
    new: np.ndarray  # int64, tokens that it has not seen yet
    tokens: list[int] = field(default_factory=list)  # answered, the stop token among them

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be said."""
        return len(self.tokens) >= self.limit


def generate(
    model: OneVisionModel,
    prompts: Iterable[Prompt],
    *,
    image_pad: int,
    stop_tokens: Collection[int],
    max_new_tokens: int,
    batch_tokens: int,
) -> Iterator[list[int]]:
    """Yield the answer to each prompt, in order, without its stop token; otherwise as `stream`."""
    answers: dict[int, list[int]] = {}
    ended: set[int] = set()
    number = 0
    for event in stream(
        model,
        prompts,
        image_pad=image_pad,
        stop_tokens=stop_tokens,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
    ):
        answer = answers.setdefault(event.prompt, [])
        if event.token is not None:
            answer.append(event.token)
        if event.end:
            ended.add(event.prompt)
        while number in ended:
            ended.remove(number)
            yield answers.pop(number)
            number += 1


def stream(
    model: OneVisionModel,
    prompts: Iterable[Prompt],
    *,
    image_pad: int,
    stop_tokens: Collection[int],
    max_new_tokens: int,
    batch_tokens: int,
    memory: Memory | None = None,
) -> Generator[Event, None, None]:
    """Yield the tokens of all answers as they come, and their ends; one of `stop_tokens` ends an answer and is no part
    of it.

    Prompts are answered together up to `batch_tokens` tokens of prompts, one at least. The next one is taken from
    `prompts` when there is room for it. The model must be in evaluation mode and have `SegmentAttention`
    (`build_model(…, generates=True)`).

    With a `memory` there may be one prompt only: what it has in common with the one before is not computed again.
    """
    core_attention = model.language.decoder.layers[0].self_attention.core_attention
    assert isinstance(core_attention, SegmentAttention), "a model for generation is built with generates=True"
    assert not model.training
    cache = memory.cache if memory is not None else KeyValueCache()
    answers: list[_Answer] = []
    waiting = enumerate(prompts)
    following = next(waiting, None)
    try:
        while following or answers:
            while following and (not answers or _held(answers) + len(following[1].ids) <= batch_tokens):
                number, prompt = following
                rows = memory.begin(prompt, image_pad) if memory is not None else np.empty(0, np.int64)
                limit = prompt.max_new_tokens or max_new_tokens
                answers.append(_Answer(number, prompt, limit, prompt.sampling.draws(), rows, prompt.ids[len(rows) :]))
                following = next(waiting, None)
                assert memory is None or following is None, "a memory is that of one conversation"
            for answer, token in zip(answers, _next_tokens(model, cache, answers, image_pad), strict=True):
                answer.new = np.array([token])
                answer.tokens.append(token)
                if token in stop_tokens:
                    answer.limit = 0
                    yield Event(answer.number, None, STOP)
                else:
                    yield Event(answer.number, token, LENGTH if answer.ended else "")
            for answer in answers:
                if answer.ended and memory is None:
                    cache.give_back(answer.rows)
            if memory is not None and answers[0].ended:
                break
            answers = [answer for answer in answers if not answer.ended]
    finally:
        if memory is not None and answers:
            seen = np.concatenate([answers[0].prompt.ids, np.array(answers[0].tokens, np.int64)])
            memory.keep(answers[0].prompt, seen[: len(answers[0].rows)], answers[0].rows)


def _held(answers: list[_Answer]) -> int:
    return sum(len(answer.prompt.ids) for answer in answers)


@torch.no_grad()
def _next_tokens(model: OneVisionModel, cache: KeyValueCache, answers: list[_Answer], image_pad: int) -> list[int]:
    """One pass: the token that follows in each answer, after the model has seen its new ones."""
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    lengths = np.array([len(answer.new) for answer in answers])
    ends = lengths.cumsum()
    fresh = [n for n, answer in enumerate(answers) if not answer.tokens]
    slots, patches, grids = [], [], []
    for n in fresh:
        prompt, new = answers[n].prompt, answers[n].new
        slots.append(ends[n] - lengths[n] + np.flatnonzero(new == image_pad))
        known = len(prompt.patches) // MERGE**2 - len(slots[-1])  # image tokens that a memory has
        patches.append(prompt.patches[known * MERGE**2 :].to(device, dtype))
        grids.append(prompt.grid_thw[image_count(prompt, known) :])

    positions = np.concatenate([len(answer.rows) + np.arange(len(answer.new)) for answer in answers])
    new_rows = cache.take(int(ends[-1]))
    rows = [
        np.concatenate([answer.rows, own]) for answer, own in zip(answers, np.split(new_rows, ends[:-1]), strict=True)
    ]
    nothing_before = sum(len(entry) for entry in rows) == len(new_rows)
    seen = None if nothing_before else on_device(np.concatenate(rows), device)
    cached = CachedRows(cache, on_device(new_rows, device), seen)
    key_lengths = torch.tensor([len(entry) for entry in rows])
    try:
        logits = model(
            on_device(np.concatenate([answer.new for answer in answers]), device),
            on_device(positions, device),
            None,
            torch.cat(patches) if fresh else torch.empty(0, PATCH_VALUES, dtype=dtype, device=device),
            torch.from_numpy(np.concatenate(grids)) if fresh else torch.empty(0, 3, dtype=torch.int64),
            torch.from_numpy(np.concatenate(slots)) if fresh else torch.empty(0, dtype=torch.int64),
            target_rows=torch.from_numpy(ends - 1),
            segments=cached_params(torch.from_numpy(lengths), key_lengths, cached, device),
        )[0]
    except BaseException:  # Ctrl-C, or no memory: some layers may lack these tokens
        cache.give_back(new_rows)
        raise
    for answer, entry in zip(answers, rows, strict=True):
        answer.rows = entry
    return choose(logits, [answer.prompt.sampling for answer in answers], [answer.draws for answer in answers])
