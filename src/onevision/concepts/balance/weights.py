"""How many samples have each concept, and the weight that a sample has by the rarity of its concepts.

f_c is the number of samples with concept c. A sample with concepts c_1 … c_n weighs

    sum       1/f_1 + … + 1/f_n
    mean      (1/f_1 + … + 1/f_n) / n
    metaclip  1 - (1 - p_1) … (1 - p_n) with p_c = min(1, t/f_c): the chance that one of n coins keeps it

and 0 without concepts. Only + - * / in the order of the concepts, so that weights are the same bits on every machine.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def count_concepts(matches: Any, concept: Any, taken: Any, count: Any) -> None:
    """Add the samples of a part to `count` i8 [C]: `matches` [n] concepts each, which follow each other in `concept`.

    Samples for which `taken` [n] is false do not count.
    """
    place = 0
    for row in range(len(matches)):
        end = place + matches[row]
        if taken[row]:
            for k in range(place, end):
                count[concept[k]] += 1
        place = end


def concept_values(count: NDArray[np.int64], weighting: str, threshold: int) -> NDArray[np.float64]:
    """What a concept with `count` samples adds to a weight, f8 [C]: 1/f, or min(1, t/f); 0 where it has none."""
    value = np.zeros(len(count))
    numerator = float(threshold) if weighting == "metaclip" else 1.0
    np.divide(numerator, count, out=value, where=count > 0)
    return np.minimum(value, 1.0, out=value)


def sample_weights(
    matches: NDArray[np.uint16], concept: NDArray[np.int32], value: NDArray[np.float64], weighting: str
) -> NDArray[np.float32]:
    """The weights of the samples of a part, f4 [n]; `value` is that of `concept_values`."""
    weight = np.empty(len(matches), np.float32)
    _weights(matches, concept, value, weighting == "metaclip", weighting == "mean", weight)
    return weight


@numba.njit(cache=True, nogil=True)
def _weights(matches: Any, concept: Any, value: Any, coins: bool, mean: bool, weight: Any) -> None:
    place = 0
    for row in range(len(matches)):
        end = place + matches[row]
        if coins:
            none = 1.0
            for k in range(place, end):
                none *= 1.0 - value[concept[k]]
            weight[row] = 1.0 - none
        else:
            total = 0.0
            for k in range(place, end):
                total += value[concept[k]]
            weight[row] = total / (end - place) if mean and end > place else total
        place = end
