"""Greedy generation in a batch equals asking each question alone, one token after the other."""

from __future__ import annotations

import numpy as np
import torch

from onevision.evaluation.generate import Prompt, generate
from onevision.model.configs import language_config
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PRESETS
from onevision.recipe import ModelRecipe

PAD = 7


def _model() -> OneVisionModel:
    device = start(Ranks(), 3)
    torch.manual_seed(3)
    architecture = PRESETS["tiny"]
    with runtime_context(device):
        model = OneVisionModel(architecture, language_config(architecture, ModelRecipe(preset="tiny"), torch.float32))
    with torch.no_grad():  # random weights of this size answer less evenly
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


def _prompt(rng: np.random.Generator, length: int, grids: list[tuple[int, int]]) -> Prompt:
    pads = sum(rows * columns // 4 for rows, columns in grids)
    ids = np.concatenate([rng.integers(10, 500, 3), np.full(pads, PAD), rng.integers(10, 500, length)])
    patches = torch.from_numpy(rng.standard_normal((pads * 4, 588)).astype(np.float32))
    return Prompt(ids, patches, np.array([(1, *grid) for grid in grids], np.int64).reshape(-1, 3))


def _alone(model: OneVisionModel, prompt: Prompt, stop: int, most: int) -> list[int]:
    ids, answer = prompt.ids.tolist(), []
    while len(answer) < most:
        tokens = torch.tensor(ids)
        with torch.no_grad():
            logits = model(
                tokens,
                torch.arange(len(ids)),
                torch.tensor([0, len(ids)], dtype=torch.int32),
                prompt.patches,
                torch.from_numpy(prompt.grid_thw),
                (tokens == PAD).nonzero().squeeze(1),
            )
        token = int(logits[0, -1].argmax())
        if token == stop:
            break
        answer.append(token)
        ids.append(token)
    return answer


def test_batched_answers_are_those_of_each_question_alone() -> None:
    model = _model()
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, list[tuple[int, int]]]] = [
        (5, [(4, 4)]),
        (17, []),
        (9, [(4, 6), (2, 2)]),
        (1, [(8, 4)]),
        (30, []),
        (4, [(2, 6), (4, 4), (2, 2)]),
    ]
    prompts = [_prompt(rng, length, grids) for length, grids in shapes]
    free = [_alone(model, prompt, stop=-1, most=6) for prompt in prompts]
    assert len({tuple(answer) for answer in free}) > 1
    stop = free[0][2]  # a token that some of them say
    expected = [_alone(model, prompt, stop, most=6) for prompt in prompts]
    assert {len(answer) for answer in expected} != {6}
    for batch_tokens in (1, 60, 10_000):
        answers = generate(
            model, prompts, image_pad=PAD, stop_token=stop, max_new_tokens=6, batch_tokens=batch_tokens
        )
        assert list(answers) == expected


def test_text_prompts_go_on_when_those_with_images_are_answered() -> None:
    model = _model()
    rng = np.random.default_rng(1)
    prompts = [_prompt(rng, 5, [(4, 4)]), _prompt(rng, 12, [])]
    stop = _alone(model, prompts[0], stop=-1, most=1)[0]  # the one with an image ends at once
    expected = [_alone(model, prompt, stop, most=4) for prompt in prompts]
    assert expected[0] == []
    assert expected[1] != []
    answers = generate(model, prompts, image_pad=PAD, stop_token=stop, max_new_tokens=4, batch_tokens=10_000)
    assert list(answers) == expected
