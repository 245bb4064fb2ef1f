"""Seeded random numbers for compiled code: splitmix64, the same on every platform and for every version of NumPy.

Value i of a stream is a mix of `seed + i * GAMMA`: a counter, so that any stream can be begun anywhere.
The functions are compiled into those that call them; numba's cache does not notice a change here: remove __pycache__.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.fingerprint import value_digest

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


def stream(*key: Any) -> NDArray[np.uint64]:
    """The state of a new stream, uint64 [1]; `key` (JSON values) names it."""
    return np.array([int(value_digest(list(key))[:16], 16)], np.uint64)


@numba.njit(cache=True, nogil=True)
def below(state: NDArray[np.uint64], bound: int) -> int:
    """The stream's next number, between 0 and `bound` - 1; `bound` is at most 2**32."""
    state[0] += GAMMA
    mixed = state[0]
    mixed = (mixed ^ (mixed >> _30)) * _FIRST
    mixed = (mixed ^ (mixed >> _27)) * _SECOND
    mixed ^= mixed >> _31
    return int(((mixed >> _32) * np.uint64(bound)) >> _32)


@numba.njit(cache=True, nogil=True)
def shuffle(state: NDArray[np.uint64], values: NDArray[Any], first: int, last: int) -> None:
    """Put values[first:last] into a random order (Fisher-Yates)."""
    for place in range(last - 1, first, -1):
        other = first + below(state, place - first + 1)
        value = values[place]
        values[place] = values[other]
        values[other] = value
