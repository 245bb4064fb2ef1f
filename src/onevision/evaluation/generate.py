"""Greedy generation for many prompts at once, packed one behind the other as in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from onevision.model.onevision import OneVisionModel


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [L] that end where the answer begins, and the images they speak of, in order."""

    ids: np.ndarray
    patches: torch.Tensor  # [P, 588] of all its images
    grid_thw: np.ndarray  # int64 [I, 3]


def generate(
    model: OneVisionModel,
    prompts: Iterable[Prompt],
    *,
    image_pad: int,
    stop_token: int,
    max_new_tokens: int,
    batch_tokens: int,
) -> Iterator[list[int]]:
    """Yield the most likely continuation of each prompt, in order, without the stop token.

    Prompts are taken together up to `batch_tokens` tokens. Images are encoded once a prompt.
    """
    batch: list[Prompt] = []
    for prompt in prompts:
        if batch and sum(len(entry.ids) for entry in batch) + len(prompt.ids) > batch_tokens:
            yield from _answer(model, batch, image_pad, stop_token, max_new_tokens)
            batch = []
        batch.append(prompt)
    if batch:
        yield from _answer(model, batch, image_pad, stop_token, max_new_tokens)


@torch.no_grad()
def _answer(
    model: OneVisionModel, prompts: list[Prompt], image_pad: int, stop_token: int, max_new_tokens: int
) -> list[list[int]]:
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    patches = torch.cat([prompt.patches for prompt in prompts]).to(device, dtype)
    grid_thw = torch.from_numpy(np.concatenate([prompt.grid_thw for prompt in prompts])).to(device)
    images = model.image_tokens(patches, grid_thw) if len(grid_thw) else None
    # Rows of `images` that belong to each prompt, so that a finished prompt takes its images along when it leaves.
    counts = [len(prompt.patches) // 4 for prompt in prompts]
    image_rows = torch.arange(sum(counts), device=device).split(counts)

    answers: list[list[int]] = [[] for _ in prompts]
    sequences = [prompt.ids.tolist() for prompt in prompts]
    active = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        tokens = torch.tensor([token for i in active for token in sequences[i]], device=device)
        lengths = torch.tensor([len(sequences[i]) for i in active], device=device)
        ends = lengths.cumsum(0)
        rows = torch.cat([image_rows[i] for i in active])
        logits = model(
            tokens,
            torch.cat([torch.arange(len(sequences[i]), device=device) for i in active]),
            torch.nn.functional.pad(ends, (1, 0)).to(torch.int32),
            patches[:0],
            grid_thw[:0],
            (tokens == image_pad).nonzero().squeeze(1),
            image_tokens=images[rows] if images is not None and len(rows) else None,
        )
        best = logits[0, ends - 1].argmax(-1).tolist()
        for i, token in zip(active, best, strict=True):
            if token != stop_token:
                answers[i].append(token)
                sequences[i].append(token)
        active = [i for i, token in zip(active, best, strict=True) if token != stop_token]
        if not active:
            break
    return answers
