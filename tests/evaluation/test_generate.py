"""Generation that remembers keys and values, in a batch, equals asking each question alone and computing the whole
sequence again for every token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from onevision.evaluation.generate import LENGTH, STOP, Prompt, generate, stream
from onevision.evaluation.memory import Memory
from onevision.evaluation.sampling import Sampling, choose
from onevision.model.cache import FIRST_ROWS, KeyValueCache
from onevision.model.configs import language_config
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PRESETS
from onevision.recipe import ModelRecipe

PAD = 7
SHAPES: list[tuple[int, list[tuple[int, int]]]] = [  # tokens of text, grids of images
    (5, [(4, 4)]),
    (17, []),
    (9, [(4, 6), (2, 2)]),
    (1, [(8, 4)]),
    (30, []),
    (4, [(2, 6), (4, 4), (2, 2)]),
]


def _model(dtype: torch.dtype = torch.float32) -> OneVisionModel:
    device = start(Ranks(), 3)
    torch.manual_seed(3)
    architecture = PRESETS["tiny"]
    with runtime_context(device):
        model = OneVisionModel(architecture, language_config(architecture, ModelRecipe(preset="tiny"), dtype))
    with torch.no_grad():  # random weights of this size answer less evenly
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> OneVisionModel:
    """A tiny model with random weights, in FP32."""
    return _model()


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Prompts of different lengths, with several images, one or none."""
    rng = np.random.default_rng(0)
    return [_prompt(rng, length, grids) for length, grids in SHAPES]


def _prompt(rng: np.random.Generator, length: int, grids: list[tuple[int, int]]) -> Prompt:
    pads = sum(rows * columns // 4 for rows, columns in grids)
    ids = np.concatenate([rng.integers(10, 500, 3), np.full(pads, PAD), rng.integers(10, 500, length)])
    patches = torch.from_numpy(rng.standard_normal((pads * 4, 588)).astype(np.float32))
    return Prompt(ids, patches, np.array([(1, *grid) for grid in grids], np.int64).reshape(-1, 3))


def _logits(model: OneVisionModel, prompt: Prompt, answer: list[int]) -> Tensor:
    """Logits [V] of the token after the prompt and what is answered, by the model's plain forward pass."""
    tokens = torch.tensor([*prompt.ids.tolist(), *answer])
    with torch.no_grad():
        logits = model(
            tokens,
            torch.arange(len(tokens)),
            torch.tensor([0, len(tokens)], dtype=torch.int32),
            prompt.patches.to(model.config.params_dtype),
            torch.from_numpy(prompt.grid_thw),
            torch.from_numpy(np.flatnonzero(prompt.ids == PAD)),
        )
    return logits[0, -1]


def _alone(model: OneVisionModel, prompt: Prompt, stop: int, most: int) -> list[int]:
    answer: list[int] = []
    draws = prompt.sampling.draws()
    while len(answer) < most:
        (token,) = choose(_logits(model, prompt, answer)[None], [prompt.sampling], [draws])
        if token == stop:
            break
        answer.append(token)
    return answer


def _together(model: OneVisionModel, prompts: list[Prompt], stop: int, most: int, batch: int) -> list[list[int]]:
    return list(generate(model, prompts, image_pad=PAD, stop_tokens=(stop,), max_new_tokens=most, batch_tokens=batch))


@pytest.mark.parametrize("sampled", [False, True])
def test_batched_answers_are_those_of_each_question_alone(
    model: OneVisionModel, prompts: list[Prompt], sampled: bool
) -> None:
    if sampled:
        prompts = [
            replace(prompt, sampling=Sampling(temperature=0.5 + n / 4, top_p=1 - n / 20, top_k=n * 50, seed=n))
            for n, prompt in enumerate(prompts)
        ]
    free = [_alone(model, prompt, stop=-1, most=6) for prompt in prompts]
    assert len({tuple(answer) for answer in free}) == len(free)
    stop = free[0][2]  # a token that some of them say
    expected = [answer[: (*answer, stop).index(stop)] for answer in free]
    assert {len(answer) for answer in expected} != {6}
    for batch_tokens in (1, 60, 10_000):
        assert _together(model, prompts, -1, 6, batch_tokens) == free
        assert _together(model, prompts, stop, 6, batch_tokens) == expected


def test_text_prompts_go_on_when_those_with_images_are_answered(model: OneVisionModel) -> None:
    rng = np.random.default_rng(1)
    prompts = [_prompt(rng, 5, [(4, 4)]), _prompt(rng, 12, [])]
    stop = _alone(model, prompts[0], stop=-1, most=1)[0]  # the one with an image ends at once
    expected = [_alone(model, prompt, stop, most=4) for prompt in prompts]
    assert expected[0] == []
    assert expected[1] != []
    assert _together(model, prompts, stop, 4, 10_000) == expected


def test_a_long_answer_outgrows_the_first_rows_of_the_cache(
    model: OneVisionModel, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = len(prompts[0].ids) + 5
    monkeypatch.setattr("onevision.model.cache.FIRST_ROWS", first)
    most = 2 * first  # it grows twice
    (answer,) = _together(model, prompts[:1], -1, most, 1)
    assert len(answer) == most
    for told in (1, 4, 6, most - 1):
        logits = _logits(model, prompts[0], answer[:told])
        assert logits[answer[told]] >= logits.max() - 1e-3


def test_bf16_answers_are_the_most_likely_as_far_as_bf16_can_tell(prompts: list[Prompt]) -> None:
    model = _model(torch.bfloat16)
    for prompt, answer in zip(prompts, _together(model, prompts, -1, 6, 60), strict=True):
        for told, token in enumerate(answer):
            logits = _logits(model, prompt, answer[:told]).float()
            assert logits[token] >= logits.max() - 0.03 * logits.abs().max()


def test_tokens_come_as_they_are_chosen_and_ends_say_why(model: OneVisionModel, prompts: list[Prompt]) -> None:
    taken: list[int] = []

    def given() -> Iterator[Prompt]:
        for number, prompt in enumerate(prompts[:3]):
            taken.append(number)
            yield replace(prompt, max_new_tokens=2 if number == 1 else 0)

    free = [_alone(model, prompt, stop=-1, most=4) for prompt in prompts[:3]]
    stop = free[0][1]
    assert stop not in free[1][:2]
    room = len(prompts[0].ids) + len(prompts[1].ids)
    events = stream(model, given(), image_pad=PAD, stop_tokens=(stop,), max_new_tokens=4, batch_tokens=room)
    first = [next(events) for _ in range(2)]
    assert [(event.prompt, event.token, event.end) for event in first] == [(0, free[0][0], ""), (1, free[1][0], "")]
    assert taken == [0, 1, 2]  # the third waits for room
    rest = [(event.prompt, event.token, event.end) for event in events]
    assert rest[:2] == [(0, None, STOP), (1, free[1][1], LENGTH)]
    wanted = _alone(model, prompts[2], stop, most=4)
    assert [token for number, token, _ in rest[2:] if number == 2 and token is not None] == wanted
    assert rest[-1][2] == (LENGTH if len(wanted) == 4 else STOP)


def test_the_next_turn_goes_on_from_what_was_seen(model: OneVisionModel, prompts: list[Prompt]) -> None:
    memory = Memory()
    first, image = prompts[2], prompts[3]
    most = {"image_pad": PAD, "stop_tokens": (), "max_new_tokens": 5, "batch_tokens": 1}

    def answer(prompt: Prompt) -> list[int | None]:
        return [event.token for event in stream(model, [prompt], **most, memory=memory)]

    said = answer(first)
    assert said == _alone(model, first, stop=-1, most=5)
    second = Prompt(
        np.concatenate([first.ids, said, image.ids]),
        torch.cat([first.patches, image.patches]),
        np.concatenate([first.grid_thw, image.grid_thw]),
    )
    events = stream(model, [second], **most, memory=memory)
    told = [next(events).token for _ in range(2)]
    events.close()  # the answer is stopped
    assert told == _alone(model, second, stop=-1, most=2)
    third = replace(second, ids=np.concatenate([second.ids, told[:1], [11, 12, 13]]))
    assert answer(third) == _alone(model, third, stop=-1, most=5)
    assert memory.cache.held == len(third.ids) + 4  # nobody has seen the last token


def test_what_two_prompts_have_in_common(prompts: list[Prompt]) -> None:
    prompt = prompts[2]  # images of 6 tokens and of 1, then text
    length = len(prompt.ids)
    other = replace(prompt, patches=prompt.patches + 1)
    later = prompt.patches.clone()
    later[24:] += 1  # the second image is another one
    turned = replace(prompt, grid_thw=prompt.grid_thw[:, [0, 2, 1]])
    larger = Prompt(np.insert(prompt.ids, 3, [PAD] * 2), torch.zeros(36, 588), np.array([(1, 4, 8), (1, 2, 2)]))
    text = replace(prompt, ids=np.concatenate([prompt.ids[:-2], [1, 2, 3]]))
    for following, common in (
        (prompt, length - 1),
        (text, length - 2),
        (other, 3),
        (replace(prompt, patches=later), 3),
        (turned, 3),
        (larger, 3),
        (replace(prompt, ids=prompt.ids[:5]), 3),
        (prompts[4], 0),
    ):
        memory = Memory()
        memory.keep(prompt, prompt.ids, memory.cache.take(length))
        rows = memory.begin(following, PAD)
        assert len(rows) == memory.cache.held == common


def test_rows_of_the_cache_are_used_again_and_grow() -> None:
    cache = KeyValueCache()
    first, second = cache.take(FIRST_ROWS - 1), cache.take(5)
    assert len({*first.tolist(), *second.tolist()}) == FIRST_ROWS + 4
    assert cache.held == FIRST_ROWS + 4
    keys, _ = cache.layer(1, torch.zeros(1, 2, 3))
    keys[second] = 1.0
    cache.give_back(first)
    assert cache.held == 5
    third = cache.take(4 * FIRST_ROWS)
    assert not set(third.tolist()) & set(second.tolist())
    grown, values = cache.layer(1, torch.zeros(1, 2, 3))
    assert grown.shape == values.shape == (max(third.max(), second.max()) + 1, 2, 3)
    assert torch.equal(grown[second], torch.ones(5, 2, 3))
