"""The key of a sample, by which it is drawn: those with the lowest keys are.

Efraimidis and Spirakis draw without replacement, each time in proportion to the weights that are left, by the greatest
u^(1/w) with u uniform in (0, 1). The order of E = -log(u)/w ascending is the same, and E neither underflows nor comes
near 1 however small or large w is: only ratios of weights count. u is a hash of the seed and of the sample's id, so
that a sample keeps its u in any order of the corpus.

A key is the 64 bits of E, which have the order of E. A sample of weight 0 gets -log(u) with the sign bit set: it comes
after all others, and such samples are in random order. Keys must be the same bits on every machine, as they decide what
is drawn: `-log(u)` is computed here by + - * / of doubles alone, which IEEE 754 rounds in one way (numba does not fuse
or reorder them); libm and vector libraries differ in the last bit.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onevision.fingerprint import value_digest

NEVER = np.uint64(2**64 - 1)  # the key of a sample that is out of the draw; no E has these bits
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _12 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(12)
_LN2, _HALF_ROOT = 0.6931471805599453, 0.7071067811865476
KEPT = 1.0  # the key of a sample that its coin keeps, of two


def salt(purpose: str, seed: int) -> np.uint64:
    """What the ids are mixed with: 64 bits of a digest."""
    return np.uint64(int(value_digest([purpose, seed])[:16], 16))


@numba.njit(cache=True, nogil=True)
def _mix(value: Any) -> Any:
    """The finaliser of splitmix64, a bijection of 64 bits."""
    value = (value ^ (value >> _30)) * _FIRST
    value = (value ^ (value >> _27)) * _SECOND
    return value ^ (value >> _31)


@numba.njit(cache=True, nogil=True)
def _uniform(id_hash: Any, salt: Any) -> float:
    """An odd multiple of 2^-53 between 2^-53 and 1 - 2^-53, each of which a double holds exactly."""
    mixed = _mix(_mix(id_hash ^ salt) + _GAMMA)
    return (float(mixed >> _12) + 0.5) * 2.0**-52


@numba.njit(cache=True, nogil=True)
def _minus_log(u: float) -> float:
    """-log(u) for u in (0, 1), to a few units in the last place.

    u = m 2^-k with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 artanh(s) with s = (m - 1)/(m + 1), |s| < 0.172; twelve
    terms of the series leave less than 2^-60 of it.
    """
    k = 0.0
    while u < _HALF_ROOT:
        u *= 2.0
        k += 1.0
    s = (u - 1.0) / (u + 1.0)
    square = s * s
    series = 0.0
    for odd in range(23, 0, -2):
        series = series * square + 1.0 / odd
    return k * _LN2 - 2.0 * s * series


@numba.njit(cache=True, nogil=True)
def _fill(ids: Any, weight: Any, taken: Any, salt: Any, coins: bool, value: Any, bits: Any) -> None:
    for row in range(len(ids)):
        if not taken[row]:
            bits[row] = NEVER
            continue
        u, w = _uniform(ids[row], salt), float(weight[row])
        if coins:
            value[row] = KEPT if u < w else 2.0 * KEPT
        elif w > 0.0:
            value[row] = _minus_log(u) / w
        else:
            value[row] = -_minus_log(u)  # the sign bit


def sample_keys(
    ids: NDArray[np.uint64], weight: NDArray[np.float32], taken: NDArray[np.bool_], salt: np.uint64, coins: bool = False
) -> NDArray[np.uint64]:
    """The keys of the samples of a part, u8 [n]: `NEVER` for those that are not `taken`.

    With `coins` a sample is kept with its weight as the chance, independently of all others: its key is `KEPT_BITS`,
    or a greater one.
    """
    value = np.empty(len(ids))
    bits = value.view(np.uint64)
    _fill(ids, weight, taken, salt, coins, value, bits)
    return bits


KEPT_BITS = np.array([KEPT]).view(np.uint64)[0]
