"""Generation for many prompts at once, packed one behind the other as in training.

Every pass of the model has a segment a prompt: all its tokens the first time, the token that was chosen last from then
on. Keys and values of the tokens before are remembered (`onevision.model.cache`), images are encoded once. An answer
that has ended leaves at once, and the next prompt takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from onevision.data.image import PATCH_VALUES
from onevision.evaluation.sampling import GREEDY, Sampling, choose
from onevision.model.attention import SegmentAttention, cached_params
from onevision.model.cache import CachedRows, KeyValueCache, on_device
from onevision.model.onevision import OneVisionModel

STOP, LENGTH = "stop", "length"  # why an answer ended: the model said so, or it has as many tokens as it may


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [L] that end where the answer begins, and the images they speak of, in order."""

    ids: np.ndarray
    patches: Tensor  # [P, 588] of all its images
    grid_thw: np.ndarray  # int64 [I, 3]
    sampling: Sampling = GREEDY
    max_new_tokens: int = 0  # 0: as all


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
    new: np.ndarray  # int64, tokens that the model has not seen yet
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # of the cache, of those it has seen
    tokens: int = 0  # answered


def generate(
    model: OneVisionModel,
    prompts: Iterable[Prompt],
    *,
    image_pad: int,
    stop_token: int,
    max_new_tokens: int,
    batch_tokens: int,
) -> Iterator[list[int]]:
    """Yield the answer to each prompt, in order, without the stop token; otherwise as `stream`."""
    answers: dict[int, list[int]] = {}
    ended: set[int] = set()
    number = 0
    for event in stream(
        model,
        prompts,
        image_pad=image_pad,
        stop_token=stop_token,
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
    stop_token: int,
    max_new_tokens: int,
    batch_tokens: int,
) -> Iterator[Event]:
    """Yield the tokens of all answers as they come, and their ends; the stop token is not among them.

    Prompts are answered together up to `batch_tokens` tokens of prompts, one at least. The next one is taken from
    `prompts` when there is room for it. The model must be in evaluation mode and have `SegmentAttention`
    (`build_model(…, generates=True)`).
    """
    assert not model.training and isinstance(
        model.language.decoder.layers[0].self_attention.core_attention, SegmentAttention
    )
    cache = KeyValueCache()
    answers: list[_Answer] = []
    waiting = enumerate(prompts)
    following = next(waiting, None)
    while following or answers:
        while following and (not answers or _held(answers) + len(following[1].ids) <= batch_tokens):
            number, prompt = following
            limit = prompt.max_new_tokens or max_new_tokens
            answers.append(_Answer(number, prompt, limit, prompt.sampling.draws(), prompt.ids))
            following = next(waiting, None)
        for answer, token in zip(answers, _next_tokens(model, cache, answers, image_pad), strict=True):
            answer.new = np.array([token])
            answer.tokens += 1
            if token == stop_token:
                answer.limit = 0
                yield Event(answer.number, None, STOP)
            else:
                yield Event(answer.number, token, LENGTH if answer.tokens == answer.limit else "")
        for answer in answers:
            if answer.tokens >= answer.limit:
                cache.give_back(answer.rows)
        answers = [answer for answer in answers if answer.tokens < answer.limit]


def _held(answers: list[_Answer]) -> int:
    return sum(len(answer.prompt.ids) for answer in answers)


@torch.no_grad()
def _next_tokens(model: OneVisionModel, cache: KeyValueCache, answers: list[_Answer], image_pad: int) -> list[int]:
    """One pass: the token that follows in each answer, after the model has seen its new ones."""
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    lengths = np.array([len(answer.new) for answer in answers])
    ends = lengths.cumsum()
    fresh = [n for n, answer in enumerate(answers) if not len(answer.rows)]
    slots = [ends[n] - lengths[n] + np.flatnonzero(answers[n].new == image_pad) for n in fresh]
    patches = [answers[n].prompt.patches.to(device, dtype) for n in fresh]
    grids = [answers[n].prompt.grid_thw for n in fresh]

    positions = np.concatenate([len(answer.rows) + np.arange(len(answer.new)) for answer in answers])
    new_rows = cache.take(int(ends[-1]))
    for answer, rows in zip(answers, np.split(new_rows, ends[:-1]), strict=True):
        answer.rows = np.concatenate([answer.rows, rows])
    only_fresh = len(fresh) == len(answers)
    seen = None if only_fresh else on_device(np.concatenate([answer.rows for answer in answers]), device)
    cached = CachedRows(cache, on_device(new_rows, device), seen)
    key_lengths = torch.tensor([len(answer.rows) for answer in answers])
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
    return choose(logits, [answer.prompt.sampling for answer in answers], [answer.draws for answer in answers])
