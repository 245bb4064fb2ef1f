"""The choice of the next token, against probabilities computed the long way."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from onevision.errors import InputError
from onevision.evaluation.sampling import GREEDY, Sampling, choose

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.5, 0.0, 1.0])


def drawn(sampling: Sampling, times: int = 4000) -> Counter[int]:
    """How often each token is drawn from LOGITS."""
    return Counter(choose(LOGITS.expand(times, -1), [sampling] * times, [sampling.draws()] * times))


def expected(sampling: Sampling) -> np.ndarray:
    """Probability of each token of LOGITS, by the definition in `Sampling`."""
    powers = np.exp(LOGITS.double().numpy() / sampling.temperature)
    order = sorted(range(len(powers)), key=lambda token: -powers[token])[: sampling.top_k or len(powers)]
    total, before, kept = sum(powers[token] for token in order), 0.0, []
    for token in order:
        if before < sampling.top_p * total:
            kept.append(token)
        before += powers[token]
    return np.array([powers[token] if token in kept else 0.0 for token in range(len(powers))]) / powers[kept].sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6, seed=4),
        Sampling(temperature=1.5, top_k=4),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=2.0, top_k=5, top_p=0.8, seed=9),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling: Sampling) -> None:
    counts, probabilities, times = drawn(sampling), expected(sampling), 4000
    assert probabilities.sum() == pytest.approx(1)
    for token, probability in enumerate(probabilities):
        spread = (times * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - times * probability) <= 4.5 * spread
    assert set(counts) == set(np.flatnonzero(probabilities))


def test_the_most_likely_token_alone() -> None:
    for sampling in (GREEDY, Sampling(temperature=3.0, top_k=1), Sampling(temperature=3.0, top_p=1e-9)):
        assert drawn(sampling, 50) == {1: 50}


def test_a_seed_draws_the_same_beside_any_others() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(5))
    mine, other = Sampling(temperature=1.2, seed=7), Sampling(temperature=0.9, top_p=0.5, seed=8)
    alone, beside, draws = mine.draws(), mine.draws(), other.draws()
    for _ in range(20):
        (first,) = choose(logits[:1], [mine], [alone])
        second = choose(logits[[1, 0, 2]], [other, mine, GREEDY], [draws, beside, GREEDY.draws()])
        assert second[1] == first
        assert second[2] == int(logits[2].argmax())


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"temperature": -0.5}, "temperature=-0.5 must be"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"temperature": float("inf")}, "temperature=inf must be"),
        ({"top_p": 0.0}, "top_p=0.0 is not"),
        ({"top_p": 1.5}, "top_p=1.5 is not"),
        ({"top_k": -1}, "top_k=-1 must be"),
        ({"seed": -1}, "seed=-1 must be"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, float], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Sampling(**values)  # type: ignore[arg-type]
