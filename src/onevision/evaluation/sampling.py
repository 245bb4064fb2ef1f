"""How the next token is chosen: the most likely one, or one that is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onevision.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0. Else softmax(logits / temperature), of which the `top_k` most likely tokens stay (0:
    all), then the fewest of these that have `top_p` of what is left; one of them is drawn.

    What is drawn for the n-th token of an answer depends on the seed and n alone, whatever else is answered beside it
    and on whatever device.

    Raises:
        InputError: a value that cannot work.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(
                f"temperature={self.temperature} must be a number of at least 0 (0: the most likely token)"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} is not above 0 and at most 1 (1: all tokens)")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k} must be at least 0 (0: all tokens)")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} must be at least 0")

    def draws(self) -> np.random.Generator:
        """The generator whose n-th number in [0, 1) chooses the n-th token of an answer."""
        return np.random.default_rng(self.seed)


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sequence[Sampling], draws: Sequence[np.random.Generator]) -> list[int]:
    """The next token of each of N answers: logits [N, V], how each is sampled, and their generators."""
    tokens = logits.argmax(-1)
    drawn = [row for row, entry in enumerate(sampling) if entry.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        uniform = [draws[row].random() for row in drawn]
        tokens[rows] = _draw(logits[rows].double(), [sampling[row] for row in drawn], uniform)
    return tokens.tolist()


def _draw(logits: Tensor, sampling: Sequence[Sampling], uniform: Sequence[float]) -> Tensor:
    """int64 [N] of logits [N, V] in float64: the token at which the summed probabilities, from the most likely token
    down, pass `uniform` of their sum."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    ordered, tokens = (logits / column([entry.temperature for entry in sampling])).sort(
        dim=-1, descending=True, stable=True
    )
    probabilities = ordered.softmax(-1)
    width = logits.shape[1]
    places = torch.arange(width, device=logits.device)
    probabilities = probabilities * (places < column([entry.top_k or width for entry in sampling]))
    sums = probabilities.cumsum(-1)
    # A token stays while those before it have less than top_p: so the first always does.
    wanted = column([entry.top_p for entry in sampling]) * sums[:, -1:]
    probabilities = probabilities * (sums - probabilities < wanted)
    sums = probabilities.cumsum(-1)
    place = torch.searchsorted(sums, column(uniform) * sums[:, -1:], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # a rounded sum must not lead behind it
    return tokens.gather(1, torch.minimum(place, last)).squeeze(1)
